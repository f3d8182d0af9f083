//! The program of `--exec`: started when its databases are replicated, told of signals, waited for.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};

use rustix::process::{Pid, Signal, kill_process};

use super::super::Error;
use super::{Event, orphans};

/// A program that runs.
pub(super) struct Program {
    pid: Pid,
}

impl Program {
    /// Starts it; its end comes as an event.
    pub(super) fn start(words: &[String], events: &Sender<Event>) -> Result<Program, Error> {
        let Some((name, arguments)) = words.split_first() else {
            return Err(Error::Usage("--exec: there is no program in it".into()));
        };
        let mut command = Command::new(name);
        command.args(arguments);
        // The service manager expects messages from this process, not from the program.
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        // The thread starts first: without a waiting thread the program would go on without its sidecar.
        let events = events.clone();
        let (started, starts) = mpsc::channel::<Child>();
        let waits = std::thread::Builder::new().name("wait".into()).spawn(move || {
            if let Ok(mut child) = starts.recv() {
                let _ = events.send(Event::Ended(child.wait()));
            }
        });
        waits.map_err(Error::System)?;
        let child = command
            .spawn()
            .map_err(|error| Error::Exec { program: name.clone(), source: error })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::System(std::io::ErrorKind::InvalidData.into()))?;
        log::info!("started {name}, process {}", child.id());
        // The thread is waiting for this message.
        let _ = started.send(child);
        orphans::take_in(pid);
        Ok(Program { pid })
    }

    /// Passes a signal on.
    pub(super) fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            // The program may just have ended.
            let _ = kill_process(self.pid, signal);
        }
    }
}

/// The exit code that says how it ended, as a shell would.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
