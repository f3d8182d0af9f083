//! Signals: what one means depends on how far the process is.

use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithRawSiginfo;

use super::super::Error;
use super::Event;

/// For so long after the program's end a signal is taken for the one that ended the program.
const SAME: Duration = Duration::from_secs(1);
/// `si_code` of what the kernel sends by itself (`sigaction(2)`).
const SI_KERNEL: i32 = 0x80;

/// One that came.
#[derive(Clone, Copy)]
pub(super) struct Signal {
    pub(super) number: i32,
    /// `si_code`: who sent it.
    code: i32,
}

impl Signal {
    /// A key like Ctrl-C sends its signal to all programs of the terminal, so to ours as well. What
    /// somebody sends with `kill` comes to this process alone, whether or not it has a terminal.
    pub(super) fn is_of_a_key(self) -> bool {
        matches!(self.number, SIGINT | SIGQUIT) && self.code == SI_KERNEL
    }
}

/// Why the process closes.
#[derive(Clone, Copy)]
pub(super) enum Closing {
    /// It was told to, by a signal.
    Told,
    /// The program of `--exec` has ended, at this moment.
    Ended(Instant),
}

impl Closing {
    /// Whether a signal of this moment says that the process is to end at once.
    ///
    /// A signal to a whole group (Ctrl-C, `systemctl stop`) may end the program before it is heard
    /// here. It is then no second one: what is left is to be shipped.
    fn is_cut_short(self, now: Instant) -> bool {
        match self {
            Closing::Told => true,
            Closing::Ended(at) => now.saturating_duration_since(at) >= SAME,
        }
    }
}

/// Returns the signals that this process ignores, a bit for each ([`bit`]).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.strip_prefix("SigIgn:"));
    lines.next().and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

/// Makes events of signals until `closing` says that the process closes.
pub(super) fn listen(
    with_program: bool,
    events: &Sender<Event>,
    closing: &Arc<OnceLock<Closing>>,
) -> Result<(), Error> {
    let mut numbers = vec![SIGINT, SIGTERM, SIGHUP];
    if with_program {
        numbers.extend([SIGQUIT, SIGUSR1, SIGUSR2]);
    }
    let ignored = ignored();
    // Ignored signals, as after nohup, stay ignored, and the program inherits that.
    numbers.retain(|number| ignored & bit(*number) == 0);
    if with_program && ignored & bit(SIGCHLD) != 0 {
        // While SIGCHLD is ignored the kernel keeps no exit code. The program starts with the default for
        // SIGCHLD.
        signal_hook::flag::register(SIGCHLD, Arc::default()).map_err(Error::System)?;
    }
    let mut signals = SignalsInfo::<WithRawSiginfo>::new(numbers).map_err(Error::System)?;
    let (events, closing) = (events.clone(), Arc::clone(closing));
    let listens = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for info in signals.forever() {
            let signal = Signal { number: info.si_signo, code: info.si_code };
            if closing.get().is_none() && events.send(Event::Signal(signal)).is_ok() {
                continue;
            }
            // Without a reason in `closing`, an error is the reason.
            if closing.get().is_none_or(|closing| closing.is_cut_short(Instant::now())) {
                // The next start ships the rest.
                let _ = signal_hook::low_level::emulate_default_handler(signal.number);
            }
        }
    });
    listens.map(drop).map_err(Error::System)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_that_ended_the_program_is_no_second_one() {
        let ended = Instant::now();
        let closing = Closing::Ended(ended);
        assert!(!closing.is_cut_short(ended));
        assert!(!closing.is_cut_short(ended + Duration::from_millis(999)));
        assert!(closing.is_cut_short(ended + Duration::from_secs(1)));
        // The signal came before the end of the program was noted.
        assert!(!closing.is_cut_short(ended.checked_sub(SAME).unwrap_or(ended)));
        assert!(Closing::Told.is_cut_short(ended));
    }

    #[test]
    fn only_a_key_reaches_all_programs_of_the_terminal() {
        let by_kill = 0;
        for (number, code, of_a_key) in [
            (SIGINT, SI_KERNEL, true),
            (SIGQUIT, SI_KERNEL, true),
            (SIGINT, by_kill, false),
            (SIGQUIT, by_kill, false),
            // The terminal is gone: the kernel signals the first process of the session.
            (SIGHUP, SI_KERNEL, false),
            (SIGTERM, by_kill, false),
        ] {
            assert_eq!(Signal { number, code }.is_of_a_key(), of_a_key, "{number} {code}");
        }
    }
}
