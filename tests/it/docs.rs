//! Pages that name tests as proof name tests that exist.

use std::{fs, path::Path};

/// The names of tests on a page: `e2e::running::a_test`, `lib::waiter::step::tests::a_test`, `cases::a_folder`.
fn named_tests(page: &str) -> Vec<Vec<&str>> {
    const PROGRAMS: [&str; 7] = ["lib", "it", "e2e", "e2e_plain", "e2e_rights", "differential", "cases"];
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .map(|text| text.split("::").collect::<Vec<_>>())
        .filter(|parts| parts.len() > 1 && PROGRAMS.contains(&parts[0]))
        .collect()
}

/// Whether a test of this name is in the file that its path says.
fn exists(parts: &[&str]) -> bool {
    let (program, modules, name) = (parts[0], &parts[1..parts.len() - 1], parts[parts.len() - 1]);
    let folder = match program {
        "lib" => Path::new("src").to_owned(),
        "cases" => return Path::new("tests/cases").join(name).is_dir(),
        program => Path::new("tests").join(program),
    };
    // A module is a file or a folder; `mod tests` may also stand in its parent's file.
    let path = modules.join("/");
    let parent = path.trim_end_matches("/tests");
    let files = [
        format!("{path}.rs"),
        format!("{path}/mod.rs"),
        format!("{parent}.rs"),
        format!("{parent}/mod.rs"),
        "main.rs".to_owned(),
    ];
    let is_test = |text: &str| {
        let Some(at) = text.find(&format!("fn {name}(")) else {
            return false;
        };
        // Below its attribute, with at most other attributes and comments in between.
        let above = text[..at].trim_end_matches("async ").lines().rev().map(str::trim);
        above
            .take_while(|line| line.is_empty() || line.starts_with("#[") || line.starts_with("//"))
            .any(|line| line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    files
        .iter()
        .any(|file| fs::read_to_string(folder.join(file)).is_ok_and(|text| is_test(&text)))
}

#[test]
#[allow(clippy::single_element_loop)] // there will be more pages
fn tests_that_pages_name_exist() {
    for (page, at_least) in [
        ("docs/differences-from-velero.md", 30),
        ("docs/from-kasten.md", 10),
        ("docs/operating.md", 7),
        ("docs/results.md", 7),
        ("docs/SECURITY.md", 40),
    ] {
        let text = fs::read_to_string(page).unwrap();
        let named = named_tests(&text);
        assert!(named.len() >= at_least, "{page} names {} tests", named.len());
        let missing: Vec<String> = named
            .iter()
            .filter(|parts| !exists(parts))
            .map(|parts| parts.join("::"))
            .collect();
        assert!(missing.is_empty(), "{page} names tests that do not exist: {missing:#?}");
    }
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    let page =
        "see `e2e::running::no_such_test`, `it::docs::named_tests` and `it::docs::a_test_that_is_not_there_is_noticed`";
    let found: Vec<bool> = named_tests(page).iter().map(|parts| exists(parts)).collect();
    assert_eq!(found, [false, false, true]);
}

#[test]
fn the_documents_blueprints_stand_word_for_word_on_the_page_for_people_from_kasten() {
    let page = fs::read_to_string("docs/from-kasten.md").unwrap();
    for name in ["post-export", "post-restore"] {
        let blueprint = fs::read_to_string(format!("tests/blueprints/document-{name}.yaml")).unwrap();
        assert!(page.contains(blueprint.trim_end()), "{name}");
    }
}
