//! Reveille against Velero's own code: thousands of generated pods and Restores through both. Each difference must be one of
//! [`difference::Difference`], all of which `docs/differences-from-velero.md` gives reasons for.
//!
//! ```sh
//! cargo test --features differential --test differential -- --nocapture
//! ```
//!
//! `REVEILLE_DIFFERENTIAL_CASES` and `REVEILLE_DIFFERENTIAL_SEED` change how many cases there are and which.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test"
)]

mod case;
mod difference;
mod generate;
mod model;
mod oracle;
mod ours;
mod restate;
mod shrink;
mod templates;

use std::collections::{BTreeMap, BTreeSet};

use case::{Case, init_containers};
use difference::Difference;
use generate::Generator;
use model::{Arrival, Outcome, arriving, ask, comparable, expect};
use oracle::Oracle;
use ours::{Broken, decide_arriving};
use restate::Differences;
use reveille::hooks::{glob::Glob, matching::IncludeExclude};

const ARRIVALS: [Arrival; 2] = [Arrival::BehindVelero, Arrival::Bare];

/// How a case came out.
#[derive(Debug)]
enum Verdict {
    Same,
    /// These differences explain it: without any one of them it would not be explained.
    Explained(BTreeSet<Difference>),
    Unexplained(String),
}

fn judge(oracle: &mut Oracle, case: &Case, broken: Option<Broken>) -> Verdict {
    let raw = ask(oracle, case);
    let all = BTreeSet::from(Difference::ALL);
    let mut explained = BTreeSet::new();
    for arrival in ARRIVALS {
        let Some(pod) = arriving(case, &raw, arrival) else {
            continue;
        };
        let ours = match decide_arriving(&pod, &case.restore, broken) {
            Ok(ours) => ours,
            Err(message) => return Verdict::Unexplained(format!("{arrival:?}: {message}")),
        };
        let mut agree = |allowed: &BTreeSet<Difference>| {
            let mut differences = Differences {
                allowed,
                touched: BTreeSet::new(),
            };
            let expected = expect(oracle, case, &pod, &mut differences).map(|outcome| comparable(outcome, allowed));
            let ours = comparable(ours.clone(), allowed);
            (expected.as_ref() == Some(&ours), expected, differences.touched)
        };
        if agree(&BTreeSet::new()).0 {
            continue;
        }
        let (same, expected, mut touched) = agree(&all);
        if !same {
            return Verdict::Unexplained(format!(
                "{arrival:?}: {}",
                report(expected.as_ref(), &comparable(ours.clone(), &all))
            ));
        }
        let shown = json(&ours.init.containers);
        touched.extend(
            shown
                .contains("reveille-init-")
                .then_some(Difference::GeneratedNameIsStable),
        );
        touched.extend(
            shown
                .contains("futureField")
                .then_some(Difference::UnknownFieldsAreKept),
        );
        let needed: BTreeSet<Difference> = touched
            .iter()
            .copied()
            .filter(|difference| {
                let mut others = all.clone();
                others.remove(difference);
                !agree(&others).0
            })
            .collect();
        explained.extend(if needed.is_empty() { touched } else { needed });
    }
    if explained.is_empty() {
        Verdict::Same
    } else {
        Verdict::Explained(explained)
    }
}

fn report(expected: Option<&Outcome>, ours: &Outcome) -> String {
    let Some(expected) = expected else {
        return format!("Velero restores no such pod, which no difference explains; Reveille has {ours:#?}");
    };
    let part = |name: &str, expected: String, ours: String| {
        (expected != ours).then(|| format!("{name}\n  expected from Velero's answer: {expected}\n  Reveille: {ours}"))
    };
    let parts = [
        part("post hooks", json(&expected.post), json(&ours.post)),
        part(
            "post hooks in error",
            json(&expected.post_errors),
            json(&ours.post_errors),
        ),
        part(
            "init containers",
            json(&expected.init.containers),
            json(&ours.init.containers),
        ),
        part(
            "init hooks in error",
            json(&expected.init.errors),
            json(&ours.init.errors),
        ),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("not explained by any difference\n{}", parts.join("\n"))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// What a case goes through, for the counts.
fn branches(case: &Case, raw: &oracle::Answer, found: &mut BTreeMap<&'static str, u64>) -> bool {
    let mut hit = |name: &'static str, condition: bool| {
        *found.entry(name).or_default() += u64::from(condition);
        condition
    };
    let annotation = |key: &str| {
        case.pod["metadata"]["annotations"][key]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    };
    hit("Velero can't read the Restore", !raw.undecodable.is_empty());
    hit("Velero refuses the Restore", !raw.invalid.is_empty());
    hit("Velero panics at the init hook", !raw.init_panic.is_empty());
    let hooks: Vec<_> = raw.post.iter().flat_map(BTreeMap::values).flatten().collect();
    let post_annotation = hit(
        "post hook from an annotation",
        hooks.iter().any(|hook| hook.source == "annotation"),
    );
    let post_spec = hit(
        "post hooks from the spec",
        hooks.iter().any(|hook| hook.source == "spec"),
    );
    hit("several post hooks", hooks.len() > 1);
    hit(
        "post hooks in several containers",
        raw.post.as_ref().is_some_and(|post| post.len() > 1),
    );
    let added = raw
        .pod
        .as_ref()
        .is_some_and(|pod| init_containers(pod).len() > init_containers(&case.pod).len());
    let image = annotation("init.hook.restore.velero.io/container-image");
    let init_annotation = hit("init hook from an annotation", added && image);
    let init_spec = hit("init hooks from the spec", added && !image);
    hit(
        "annotation and spec at once",
        (post_annotation && init_spec) || (init_annotation && post_spec),
    );
    hit("with a wait container", case.wait != case::Wait::None);
    hit(
        "namespace mapped",
        case.restore["spec"].get("namespaceMapping").is_some(),
    );
    hit(
        "Reveille's own annotation keys",
        json(&case.pod).contains("reveille.dev"),
    );
    let any = post_annotation || post_spec || init_annotation || init_spec;
    hit("no hook at all", !any);
    any
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Case `number` of a seed.
fn case_of(seed: u64, number: u64) -> Case {
    Generator::new(seed.wrapping_mul(1_000_003).wrapping_add(number)).case()
}

/// What a part of the cases came to.
#[derive(Default)]
struct Tally {
    hooked: u64,
    same: u64,
    differences: BTreeMap<Difference, u64>,
    branches: BTreeMap<&'static str, u64>,
    /// The first case that nothing explains.
    unexplained: Option<u64>,
}

impl Tally {
    fn count(oracle: &mut Oracle, seed: u64, numbers: impl Iterator<Item = u64>) -> Self {
        let mut tally = Self::default();
        for number in numbers {
            let case = case_of(seed, number);
            let raw = ask(oracle, &case);
            tally.hooked += u64::from(branches(&case, &raw, &mut tally.branches));
            match judge(oracle, &case, None) {
                Verdict::Same => tally.same += 1,
                Verdict::Explained(names) => {
                    for name in names {
                        *tally.differences.entry(name).or_default() += 1;
                    }
                }
                Verdict::Unexplained(_) => {
                    tally.unexplained = Some(number);
                    break;
                }
            }
        }
        tally
    }

    fn add(&mut self, other: Self) {
        self.hooked += other.hooked;
        self.same += other.same;
        for (name, count) in other.differences {
            *self.differences.entry(name).or_default() += count;
        }
        for (name, count) in other.branches {
            *self.branches.entry(name).or_default() += count;
        }
        self.unexplained = [self.unexplained, other.unexplained].into_iter().flatten().min();
    }
}

#[test]
fn every_difference_has_a_name() {
    let cases = from_environment("REVEILLE_DIFFERENTIAL_CASES", 10_000);
    let seed = from_environment("REVEILLE_DIFFERENTIAL_SEED", 20_200_901);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let mut oracles: Vec<Oracle> = (0..workers).map(|_| Oracle::start()).collect();
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..)
            .zip(&mut oracles)
            .map(|(worker, oracle)| scope.spawn(move || Tally::count(oracle, seed, (worker..cases).step_by(workers))))
            .collect();
        for part in parts {
            tally.add(part.join().unwrap());
        }
    });
    if let Some(number) = tally.unexplained {
        let oracle = &mut oracles[0];
        let small = shrink::shrink(case_of(seed, number), &mut |case| {
            matches!(judge(oracle, case, None), Verdict::Unexplained(_))
        });
        let Verdict::Unexplained(message) = judge(oracle, &small, None) else {
            unreachable!()
        };
        panic!("case {number} of seed {seed}, made small:\n{small}\n\n{message}");
    }
    let coverage = oracle::coverage(oracles);
    let Tally {
        hooked,
        same,
        differences,
        branches,
        unexplained: _,
    } = tally;
    println!(
        "{cases} cases of seed {seed}: {hooked} match a hook in Velero, {same} come out the same, the others differ by:"
    );
    for difference in Difference::ALL {
        println!(
            "{:8}  {}",
            differences.get(&difference).copied().unwrap_or_default(),
            difference.name()
        );
    }
    println!("what the cases go through:");
    for (name, count) in &branches {
        println!("{count:8}  {name}");
    }
    println!("of Velero's own code, in per cent of the statements:");
    let functions = [
        "*InitContainerRestoreHookHandler.HandleRestoreHooks",
        "*InitRestoreHookPodAction.Execute",
        "getInitContainerFromAnnotation",
        "GetRestoreHooksFromSpec",
        "getPodExecRestoreHookFromAnnotations",
        "GroupRestoreExecHooks",
        "ResourceHookSelector.applicableTo",
        "parseStringToCommand",
        "ValidateContainer",
        "globStringSet.match",
        "*IncludesExcludes.ShouldInclude",
    ];
    for name in functions {
        println!("{:8.1}  {name}", coverage.get(name).copied().unwrap_or_default());
    }
    assert!(hooked * 10 >= cases * 3, "only {hooked} of {cases} match a hook");
    if cases >= 10_000 {
        for name in functions {
            assert!(
                coverage.get(name).is_some_and(|share| *share > 60.0),
                "{name} is hardly gone through"
            );
        }
        for (name, count) in branches {
            assert!(count >= 20, "only {count} cases: {name}");
        }
        for difference in Difference::ALL {
            assert!(
                differences.contains_key(&difference),
                "no case shows {}: is it still one?",
                difference.name()
            );
        }
    }
}

#[test]
fn a_broken_rule_is_noticed() {
    let mut oracle = Oracle::start();
    for broken in Broken::ALL {
        let mut noticed_in = |number: u64, broken: Option<Broken>| {
            let verdict = judge(&mut oracle, &case_of(7, number), broken);
            matches!(verdict, Verdict::Unexplained(_))
        };
        let noticed = (0..2000).find(|number| noticed_in(*number, Some(broken)));
        println!("{broken:?} is noticed at case {noticed:?}");
        let number = noticed.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        assert!(
            !noticed_in(number, None),
            "case {number} fails also with all rules in order"
        );
    }
}

#[test]
fn durations_and_booleans_are_gos() {
    let mut oracle = Oracle::start();
    let mut generator = Generator::new(1);
    for _ in 0..50_000 {
        let text = generator.duration();
        let ours = text.parse::<reveille::duration::GoDuration>().ok();
        let nanos = ours.map(|duration| i64::try_from(duration.to_signed().as_nanos()).unwrap());
        assert_eq!(nanos, oracle.duration(&text), "{text:?}");
    }
    for _ in 0..1000 {
        let text = generator.boolean();
        let pod = serde_json::json!({"metadata": {"annotations": {
            "post.hook.restore.velero.io/command": "x", "post.hook.restore.velero.io/wait-for-ready": text
        }}});
        let annotations = reveille::hooks::select::annotations_of(&pod);
        let ours = reveille::hooks::annotations::read(&annotations, false).post.unwrap();
        let theirs = Some(text.as_str())
            .filter(|text| !text.is_empty())
            .map(|text| oracle.boolean(text));
        assert_eq!(ours.error.is_some(), theirs == Some(None), "{text:?}");
        assert_eq!(ours.wait_for_ready, theirs == Some(Some(true)), "{text:?}");
    }
}

/// Faults of Velero's library: what stands before and behind a `*` may overlap there, and `{}` is not empty.
fn library_errs(pattern: &str, name: &str) -> bool {
    let plain = |text: &str| !text.contains(['*', '?', '[', '{', '\\']);
    let parts = pattern
        .split_once('*')
        .filter(|(front, back)| plain(front) && plain(back));
    pattern.contains("{}") || parts.is_some_and(|(front, back)| name.len() < front.len() + back.len())
}

#[test]
fn globs_are_veleros() {
    let mut oracle = Oracle::start();
    let mut generator = Generator::new(2);
    let (mut incomplete, mut panics) = (0, 0);
    for _ in 0..50_000 {
        let (pattern, name) = generator.glob();
        let list = |pattern: &str| vec![pattern.to_owned()];
        let lists = |include, exclude| IncludeExclude { include, exclude };
        let ours = (
            lists(list(&pattern), vec![]).includes(&name),
            !lists(vec![], list(&pattern)).includes(&name),
        );
        if let Err("a brace is not closed" | "it ends with a backslash") = Glob::parse(&pattern) {
            // `BadPatternMatchesNoPod`
            incomplete += 1;
            assert_eq!(ours, (false, false), "{pattern:?} on {name:?}");
            continue;
        }
        match oracle.glob(&pattern, &name) {
            None => panics += 1,
            Some(theirs) if theirs == ours || library_errs(&pattern, &name) => {}
            Some(theirs) => {
                panic!("{pattern:?} on {name:?} (included, excluded): Velero {theirs:?}, Reveille {ours:?}")
            }
        }
    }
    println!("50000 patterns, {incomplete} of them incomplete; Velero's library panics at {panics}");
}

#[test]
fn the_page_of_differences_is_complete() {
    let page = include_str!("../../docs/differences-from-velero.md");
    let sections: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    assert_eq!(sections, Difference::ALL.map(Difference::name).into());
}
