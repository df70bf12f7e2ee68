//! The differences that are meant.

/// Each has a section of the same name in `docs/differences-from-velero.md`, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Difference {
    BadBooleanIsAnError,
    BadDurationDoesNotHideTheRestore,
    BadDurationIsAnError,
    BadPatternMatchesNoPod,
    DesignDocumentForm,
    EmptyCommandIsAnError,
    FieldNamesAreExact,
    GeneratedNameIsStable,
    HookInheritsFromTarget,
    IncludedResourcesHonoured,
    InitCommandIsOptional,
    InitContainersAnnotation,
    InitImageWithoutCommand,
    InitTimeoutIsRead,
    LabelSyntaxIsNotChecked,
    LabelsAsCreated,
    LoneSurrogateIsNoJson,
    MissingContainerIsAnError,
    NameClashIsReported,
    NativeSidecarIsATarget,
    NegativeDurationIsAnError,
    NoSecondInjection,
    OneBadHookDoesNotStopTheRestore,
    OnErrorMisspelt,
    OwnAnnotationDomain,
    SelectorFieldsAreKnown,
    UnknownFieldsAreKept,
    UnnamedRuleGetsAName,
}

impl Difference {
    pub(crate) const ALL: [Self; 28] = [
        Self::BadBooleanIsAnError,
        Self::BadDurationDoesNotHideTheRestore,
        Self::BadDurationIsAnError,
        Self::BadPatternMatchesNoPod,
        Self::DesignDocumentForm,
        Self::EmptyCommandIsAnError,
        Self::FieldNamesAreExact,
        Self::GeneratedNameIsStable,
        Self::HookInheritsFromTarget,
        Self::IncludedResourcesHonoured,
        Self::InitCommandIsOptional,
        Self::InitContainersAnnotation,
        Self::InitImageWithoutCommand,
        Self::InitTimeoutIsRead,
        Self::LabelSyntaxIsNotChecked,
        Self::LabelsAsCreated,
        Self::LoneSurrogateIsNoJson,
        Self::MissingContainerIsAnError,
        Self::NameClashIsReported,
        Self::NativeSidecarIsATarget,
        Self::NegativeDurationIsAnError,
        Self::NoSecondInjection,
        Self::OneBadHookDoesNotStopTheRestore,
        Self::OnErrorMisspelt,
        Self::OwnAnnotationDomain,
        Self::SelectorFieldsAreKnown,
        Self::UnknownFieldsAreKept,
        Self::UnnamedRuleGetsAName,
    ];

    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }
}
