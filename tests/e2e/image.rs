//! The Dockerfile cannot be built here: there is no container engine and no base image. What it would make is compared, file by
//! file and setting by setting, with the image that these tests run on.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
};

use serde_json::Value;

use crate::harness::*;

/// What an image is, apart from the bytes of its files.
#[derive(Debug, Default, PartialEq)]
struct Image {
    files: BTreeSet<String>,
    user: String,
    entrypoint: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// The last stage of the Dockerfile.
fn of_dockerfile() -> Image {
    let text = fs::read_to_string(root().join("Dockerfile"))
        .unwrap()
        .replace("\\\n", " ");
    let stage = text.rsplit("\nFROM ").next().unwrap();
    assert!(stage.starts_with("scratch\n"), "the last stage begins with nothing");
    let mut image = Image::default();
    let mut arguments: Vec<(String, String)> = Vec::new();
    for line in stage.lines() {
        let Some((word, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim();
        match word {
            "COPY" => drop(image.files.insert(rest.rsplit(' ').next().unwrap().to_owned())),
            "USER" => rest.clone_into(&mut image.user),
            "ENTRYPOINT" => image.entrypoint = serde_json::from_str(rest).unwrap(),
            "LABEL" => {
                // KEY="VALUE" KEY="VALUE"
                let parts: Vec<&str> = rest.split('"').collect();
                let pairs = parts
                    .chunks_exact(2)
                    .map(|pair| (pair[0].trim().trim_end_matches('='), pair[1]));
                image.labels.extend(pairs.map(|(key, value)| {
                    let filled = arguments.iter().fold(value.to_owned(), |text, (name, default)| {
                        text.replace(&format!("${{{name}}}"), default)
                    });
                    (key.to_owned(), filled)
                }));
            }
            "ARG" => arguments.extend(
                rest.split_once('=')
                    .map(|(name, default)| (name.to_owned(), default.to_owned())),
            ),
            "#" => {}
            other => panic!("an instruction that this test does not know: {other}"),
        }
    }
    image
}

/// The image in a docker archive.
fn of_archive(archive: &str) -> Image {
    let folder = env::temp_dir().join(format!("reveille-image-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    must_run("tar", &["-xf", archive, "-C", &folder.to_string_lossy()]);
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let manifest = read(&folder.join("manifest.json"))[0].clone();
    let config = read(&folder.join(manifest["Config"].as_str().unwrap()))["config"].clone();
    let mut image = Image {
        user: config["User"].as_str().unwrap_or_default().to_owned(),
        entrypoint: serde_json::from_value(config["Entrypoint"].clone()).unwrap(),
        labels: serde_json::from_value(config["Labels"].clone()).unwrap(),
        ..Image::default()
    };
    for layer in manifest["Layers"].as_array().unwrap() {
        let layer = folder.join(layer.as_str().unwrap());
        let listed = must_run("tar", &["-tf", &layer.to_string_lossy()]);
        let files = listed.lines().filter(|name| !name.ends_with('/'));
        image
            .files
            .extend(files.map(|name| format!("/{}", name.trim_start_matches("./").trim_start_matches('/'))));
    }
    fs::remove_dir_all(&folder).unwrap();
    image
}

#[test]
fn the_test_image_is_what_the_dockerfile_would_make() {
    let archive = env::var("REVEILLE_IMAGE_TAR").expect("REVEILLE_IMAGE_TAR names the image: `make test` sets it");
    let wanted = of_dockerfile();
    assert_eq!(of_archive(&archive), wanted);
    assert!(wanted.files.contains("/reveille") && wanted.labels.len() >= 5);
    assert_eq!(
        wanted.labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION"),
        "ARG VERSION of the Dockerfile"
    );
    // Nobody's number, so that `runAsNonRoot` can tell.
    assert!(
        wanted
            .user
            .split(':')
            .all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)),
        "{}",
        wanted.user
    );
}
