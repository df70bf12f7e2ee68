//! The Dockerfile against the source, without a container engine.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// All Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The files that a source file takes in, from the root of the repository on.
fn taken_in(root: &Path, source: &Path) -> Vec<String> {
    let text = fs::read_to_string(source).unwrap();
    let calls = ["include_str!(\"", "include_bytes!(\""];
    let named = calls.iter().flat_map(|call| text.split(call).skip(1));
    named
        .map(|rest| {
            let name = rest.split('"').next().unwrap();
            let path = fs::canonicalize(source.parent().unwrap().join(name)).unwrap();
            path.strip_prefix(root).unwrap().to_string_lossy().into_owned()
        })
        .collect()
}

#[test]
fn the_builder_gets_each_file_that_the_source_takes_in() {
    let root = fs::canonicalize(env!("CARGO_MANIFEST_DIR")).unwrap();
    let ignore = fs::read_to_string(root.join(".dockerignore")).unwrap();
    let dockerfile = fs::read_to_string(root.join("Dockerfile")).unwrap();
    let copied: Vec<&str> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .flat_map(str::split_whitespace)
        .collect();
    let mut outside = 0;
    for source in sources(&root.join("src")) {
        for file in taken_in(&root, &source) {
            if file.starts_with("src/") {
                continue;
            }
            outside += 1;
            let asker = source.display();
            assert!(
                ignore.lines().any(|line| line == format!("!{file}")),
                "{asker}: .dockerignore hides {file}"
            );
            assert!(
                copied.contains(&file.as_str()),
                "{asker}: the Dockerfile does not copy {file}"
            );
        }
    }
    assert!(outside > 0, "the page on architecture is one");
}
