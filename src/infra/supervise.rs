//! A parent that starts this program again whenever it ends, so that its container does not end with it.
//!
//! A pod is ready when all its containers are. Were the waiter the container's own process, each crash, and each Lease that it loses,
//! would take the webhook beside it out of the Service, and the kubelet waits longer and longer before it starts a container again.

use std::{
    env, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::clock::Stopwatch;

/// Says to the child whose child it is.
const PARENT: &str = "REVEILLE_SUPERVISOR";
/// The first pause before the child is started again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A child that has lived so long begins with the first pause.
const LONG_LIFE: Duration = Duration::from_secs(300);

/// Runs this program with the same arguments and `further` ones, again and again, until SIGTERM or SIGINT; that is passed on to the
/// child, and its exit code is the answer.
///
/// Call it on the main thread: the kernel ends the child when the thread ends that has started it.
pub async fn supervise(further: &[&str]) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child_ended = signal(SignalKind::child())?;
    let mut stop = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let life = Stopwatch::start();
        let mut child = start(further)?;
        let mut stopping = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            tokio::select! {
                _ = child_ended.recv() => {}
                () = stop() => {
                    stopping = true;
                    terminate_child(&child);
                }
            }
        };
        if stopping {
            return Ok(code(status));
        }
        if life.elapsed() >= LONG_LIFE {
            pause = FIRST_PAUSE;
        }
        warn!(%status, ?pause, "the process has ended and is started again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop() => return Ok(ExitCode::SUCCESS),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn start(further: &[&str]) -> io::Result<Child> {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let child = Command::new(env::current_exe()?)
        .arg0(name)
        .args(arguments)
        .args(further)
        .env(PARENT, std::process::id().to_string())
        .spawn()?;
    info!(process = child.id(), "started");
    Ok(child)
}

fn terminate_child(child: &Child) {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // Until it is waited for, the id is its own.
    if let Some(Err(error)) = id.map(|id| kill_process(id, Signal::TERM)) {
        warn!(%error, "the process can't be told to end");
    }
}

/// As a shell has it: 128 and the signal for a process that was killed.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// In a child of [`supervise`]: sees to it that it ends with its parent, so that nobody works beside the successor. Elsewhere it does
/// nothing. Fails if the parent has ended already.
pub fn end_with_parent() -> io::Result<()> {
    let Ok(parent) = env::var(PARENT) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid().is_some_and(|id| id.as_raw_nonzero().to_string() == parent) {
        return Ok(());
    }
    Err(io::Error::other("the process that started this one has ended"))
}
