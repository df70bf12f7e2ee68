//! The scripts, in the shells of this machine (busybox runs them in the end-to-end tests).

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use super::*;
use crate::infra::clock::Stopwatch;

struct Shell {
    /// The program and its first arguments.
    program: &'static [&'static str],
    folder: tempfile::TempDir,
}

impl Shell {
    /// The shells that are there: `sh` always is.
    fn all() -> Vec<Self> {
        const KNOWN: [&[&str]; 4] = [&["sh"], &["bash"], &["dash"], &["busybox", "sh"]];
        let there = |program: &&[&str]| {
            let run = Command::new(program[0]).args(&program[1..]).args(["-c", ":"]).output();
            run.is_ok_and(|output| output.status.success())
        };
        let shells = KNOWN.into_iter().filter(there);
        shells
            .map(|program| Self {
                program,
                folder: tempfile::tempdir().unwrap(),
            })
            .collect()
    }

    fn command(&self, script: &str, argv: &[&str]) -> Command {
        let argv: Vec<String> = argv.iter().map(|text| (*text).to_owned()).collect();
        let folder = self.folder.path().to_str().unwrap();
        let arguments = script_arguments(script, folder, "id", &argv);
        // As a container runtime starts it: with a process group of its own.
        let mut command = Command::new("setsid");
        command.arg("--wait").args(self.program).args(&arguments[1..]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, script: &str, argv: &[&str]) -> (Option<Answer>, Output) {
        let output = self.command(script, argv).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (Answer::read(text.lines().next().unwrap_or_default()), output)
    }

    fn start(&self, argv: &[&str]) -> (Option<Answer>, Output) {
        self.run(include_str!("start.sh"), argv)
    }

    fn begin(&self, argv: &[&str]) -> Child {
        self.command(include_str!("start.sh"), argv).spawn().unwrap()
    }

    fn look(&self) -> (Option<Answer>, Output) {
        self.run(include_str!("look.sh"), &[])
    }

    fn end(&self) -> (Option<Answer>, Output) {
        self.run(include_str!("end.sh"), &[])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Stopwatch::start();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn alive(pid: &Path) -> bool {
    let text = std::fs::read_to_string(pid).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", text.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_exit_code_and_the_output_are_told_and_stay() {
    for shell in Shell::all() {
        // Arguments arrive as they were written, whatever is in them.
        let strange = "a b'\"$x\n*";
        let (answer, output) = shell.start(&["/bin/sh", "-c", "printf %s \"$1\"; echo err >&2; exit 7", "sh", strange]);
        assert_eq!(answer, Some(Answer::Exited(7)), "{:?}", shell.program);
        let told = String::from_utf8(output.stdout).unwrap();
        let (line, rest) = told.split_once('\n').unwrap();
        assert_eq!((sizes(line), rest), (Some((strange.len() as u64, 4)), strange));
        assert_eq!(output.stderr, b"err\n");
        for _ in 0..2 {
            let (answer, output) = shell.look();
            assert_eq!(answer, Some(Answer::Exited(7)));
            assert!(String::from_utf8(output.stdout).unwrap().ends_with(strange));
        }
        // Too late to end it: the truth is told.
        assert_eq!(shell.end().0, Some(Answer::Exited(7)));
        shell.run(include_str!("clean.sh"), &[]);
        assert_eq!(std::fs::read_dir(shell.folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn an_attempt_is_begun_once() {
    for shell in Shell::all() {
        let mark = shell.file("mark");
        let append = format!("echo x >> {}", mark.display());
        assert_eq!(shell.start(&["/bin/sh", "-c", &append]).0, Some(Answer::Exited(0)));
        assert!(matches!(
            shell.start(&["/bin/sh", "-c", &append]).0,
            Some(Answer::Refused(_))
        ));
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), "x\n", "{:?}", shell.program);
    }
}

#[test]
fn what_nobody_has_begun_nobody_will_begin() {
    for shell in Shell::all() {
        assert_eq!(shell.look().0, Some(Answer::NotBegun), "{:?}", shell.program);
        assert_eq!(shell.look().0, Some(Answer::NotBegun));
        assert_eq!(shell.end().0, Some(Answer::NotBegun));
        assert!(matches!(shell.start(&["/bin/true"]).0, Some(Answer::Refused(_))));
    }
}

#[test]
fn a_running_command_is_found_and_its_end_too() {
    for shell in Shell::all() {
        let go = shell.file("go");
        let script = format!("until [ -e {} ]; do sleep 0.05; done; exit 3", go.display());
        let mut child = shell.begin(&["/bin/sh", "-c", &script]);
        until("it runs", || shell.file(".reveille-id.child").exists());
        assert_eq!(shell.look().0, Some(Answer::Running), "{:?}", shell.program);
        std::fs::write(&go, "").unwrap();
        until("it has ended", || shell.look().0 == Some(Answer::Exited(3)));
        child.wait().unwrap();
    }
}

#[test]
fn a_command_is_ended_with_all_that_it_has_started() {
    for shell in Shell::all() {
        let inner = shell.file("inner");
        // One that does not listen, with a child.
        let script = format!("trap '' TERM; sleep 1000 & echo $! > {}; wait", inner.display());
        let mut child = shell.begin(&["/bin/sh", "-c", &script]);
        until("the inner process runs", || {
            inner.exists() && !std::fs::read(&inner).unwrap().is_empty()
        });
        assert!(alive(&inner));
        assert_eq!(shell.end().0, Some(Answer::Ended), "{:?}", shell.program);
        assert!(!alive(&inner), "{:?}", shell.program);
        child.wait().unwrap();
    }
}

#[test]
fn a_script_that_was_killed_leaves_an_unknown_end() {
    for shell in Shell::all() {
        let mut child = shell.begin(&["/bin/sh", "-c", "sleep 1000"]);
        until("it runs", || shell.file(".reveille-id.child").exists());
        let pid = std::fs::read_to_string(shell.file(".reveille-id.pid")).unwrap();
        let group = format!("-{}", pid.split(' ').nth(1).unwrap());
        assert!(
            Command::new("kill")
                .args(["-KILL", "--", &group])
                .status()
                .unwrap()
                .success()
        );
        child.wait().unwrap();
        assert!(matches!(shell.look().0, Some(Answer::Gone(_))), "{:?}", shell.program);
    }
}

#[test]
fn a_folder_that_is_not_there_is_a_refusal() {
    let shell = Shell::all().remove(0);
    let arguments = script_arguments(include_str!("start.sh"), "/nowhere", "id", &["true".to_owned()]);
    let output = Command::new(shell.program[0]).args(&arguments[1..]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        matches!(Answer::read(text.trim_end()), Some(Answer::Refused(why)) if why.contains("/nowhere")),
        "{text}"
    );
}
