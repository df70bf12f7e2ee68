//! What processes use, as the kernel counts it.

use std::{fs, path::Path};

use anyhow::Context;

use crate::figures::Used;

/// The kernel counts processor time in hundredths of a second, on every Linux that there is.
const TICKS: f64 = 100.0;

/// A process of this machine, in a container or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// The process in a container of this pod whose arguments begin so (its own name aside). The waiter has a parent with the same
    /// arguments, less one: that one is not meant.
    pub(crate) fn in_pod(uid: &str, first_argument: &str) -> anyhow::Result<Self> {
        let found = fs::read_dir("/proc")?.filter_map(|entry| {
            let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let folder = Path::new("/proc").join(id.to_string());
            let groups = fs::read_to_string(folder.join("cgroup")).ok()?;
            let arguments = fs::read(folder.join("cmdline")).ok()?;
            let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).skip(1).collect();
            let matches =
                groups.contains(&format!("pod{uid}")) && arguments.first() == Some(&first_argument.as_bytes());
            let parent = first_argument == "waiter" && !arguments.contains(&b"--no-supervisor".as_slice());
            (matches && !parent).then_some(Self(id))
        });
        found
            .into_iter()
            .next()
            .with_context(|| format!("no process '... {first_argument}' runs in pod {uid}"))
    }

    /// Its processor time so far, in seconds.
    pub(crate) fn cpu(self) -> anyhow::Result<f64> {
        let text = self.file("stat")?;
        // The name may hold anything; after its closing parenthesis the fields are regular. 14 and 15 count all threads.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks = fields.skip(11).take(2).map(str::parse::<f64>);
        let ticks: Vec<f64> = ticks.collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / TICKS)
    }

    /// Its resident memory now, in KiB.
    pub(crate) fn resident(self) -> anyhow::Result<u64> {
        self.status("VmRSS:")
    }

    /// The most resident memory it ever had, in KiB.
    pub(crate) fn peak(self) -> anyhow::Result<u64> {
        self.status("VmHWM:")
    }

    fn status(self, key: &str) -> anyhow::Result<u64> {
        let text = self.file("status")?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("process {} has no {key}", self.0))
    }

    fn file(self, name: &str) -> anyhow::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.0)).with_context(|| format!("process {} has ended", self.0))
    }
}

/// What some processes of one kind use from now on: replicas of a server.
pub(crate) struct Meter {
    replicas: Vec<(Process, Used)>,
}

impl Meter {
    /// Begins.
    pub(crate) fn start(processes: &[Process]) -> anyhow::Result<Self> {
        let replicas = processes.iter().map(|process| {
            let used = Used {
                cpu: process.cpu()?,
                before: process.resident()?,
                ..Used::default()
            };
            anyhow::Ok((*process, used))
        });
        Ok(Self {
            replicas: replicas.collect::<Result<_, _>>()?,
        })
    }

    /// All pods wait.
    pub(crate) fn all_wait(&mut self) -> anyhow::Result<()> {
        for (process, used) in &mut self.replicas {
            used.waiting = process.resident()?;
        }
        Ok(())
    }

    /// The processor time of all, and the memory of the one with the most.
    pub(crate) fn end(self) -> anyhow::Result<Used> {
        let mut sum = Used::default();
        for (process, used) in self.replicas {
            let (cpu, peak) = (process.cpu()? - used.cpu, process.peak()?);
            let most = if peak > sum.peak { Used { peak, ..used } } else { sum };
            sum = Used {
                cpu: sum.cpu + cpu,
                ..most
            };
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let own = Process(std::process::id());
        assert!(own.cpu().is_ok());
        assert!(own.peak().unwrap() >= own.resident().unwrap() / 2);
    }
}
