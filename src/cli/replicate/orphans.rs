//! The duty of process 1, which is what `--exec` makes of walferry in a container: processes whose
//! parent has ended become its children, and stay in the table of processes until it waits for them.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, getpid, waitid, waitpid};

/// For so long an ended child is left to whoever in this process has started it: an AWS profile can
/// name a program that prints credentials. Nobody but us waits for an orphan.
const OTHERS: Duration = Duration::from_secs(1);

/// Takes in orphans for as long as the program runs, if this is process 1.
pub(super) fn take_in(program: Pid) {
    if !getpid().is_init() {
        return;
    }
    let reaps = std::thread::Builder::new().name("orphans".into()).spawn(move || {
        while somebody_ends() {
            let ended = ended_children(program);
            let begun = Instant::now();
            while let Some(left) = OTHERS.checked_sub(begun.elapsed()) {
                std::thread::park_timeout(left);
            }
            for orphan in ended {
                // The process may be gone by now.
                let _ = waitpid(Some(orphan), WaitOptions::NOHANG);
            }
        }
    });
    if let Err(error) = reaps {
        log::warn!("processes whose parent ends will stay as zombies: {error}");
    }
}

/// Waits until there is a child that has ended; `false` if there are none at all.
fn somebody_ends() -> bool {
    loop {
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(Errno::INTR) => {}
            other => return other.is_ok(),
        }
    }
}

/// Children that have ended and were not waited for. The program is waited for elsewhere.
fn ended_children(program: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = numbers.filter_map(Pid::from_raw).filter(|pid| *pid != program);
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    // An error means that the process is not a child.
    others.filter(|pid| matches!(waitid(WaitId::Pid(*pid), look), Ok(Some(_)))).collect()
}
