//! How far a long work is, on standard error: bars on a terminal, else a line now and then.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;

use crate::restore::Step;

/// Time between two lines. A work that takes less says nothing.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between two drawings of a bar.
const BAR_EVERY: Duration = Duration::from_millis(250);
/// What to say, for commands that take long.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Args {
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not say how far it is
    #[arg(long)]
    no_progress: bool,
}

impl Args {
    /// Shows progress in the way that fits the place where it goes to.
    pub(super) fn show(self, json: bool) -> Progress {
        let kind = if self.quiet || self.no_progress {
            Kind::None
        } else if json {
            Kind::Json
        } else if io::stderr().is_terminal() {
            Kind::Bar
        } else {
            Kind::Lines
        };
        Progress { shown: Arc::new(Mutex::new(Shown::new(kind, Instant::now()))) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    None,
    Bar,
    Lines,
    Json,
}

/// Progress that is shown. Ends with [`Progress::end`], before anything else is written.
#[derive(Clone)]
pub(super) struct Progress {
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    kind: Kind,
    step: Option<Step>,
    begun: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Takes a word: the step, bytes done, bytes in all.
    pub(super) fn tell(&self, step: Step, done: u64, total: u64) {
        self.shown.lock().tell(step, done, total, Instant::now());
    }

    /// Makes room for a line of something else. What goes on afterwards is shown again.
    pub(super) fn clear(&self) {
        self.shown.lock().clear();
    }

    /// Clears what is only there for the time of the work.
    pub(super) fn end(&self) {
        let mut shown = self.shown.lock();
        shown.kind = Kind::None;
        shown.clear();
    }
}

impl Shown {
    fn new(kind: Kind, now: Instant) -> Shown {
        Shown { kind, step: None, begun: now, last: now, bar: None }
    }

    fn tell(&mut self, step: Step, done: u64, total: u64, now: Instant) {
        if self.kind == Kind::None {
            return;
        }
        if self.step != Some(step) {
            self.clear();
            (self.step, self.begun) = (Some(step), now);
        }
        match self.kind {
            Kind::Bar => self.draw(step, done, total),
            _ if now.duration_since(self.last) >= LINE_EVERY => {
                self.last = now;
                let taken = now.duration_since(self.begun);
                let text = match self.kind {
                    Kind::Json => line_in_json(step, done, total, taken),
                    _ => line(step, done, total, taken),
                };
                // A closed stderr is no reason to fail.
                let _ = io::stderr().write_all(text.as_bytes());
            }
            _ => {}
        }
    }

    /// From the beginning, and also while nothing comes: whoever waits sees that it is alive.
    fn draw(&mut self, step: Step, done: u64, total: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(
                "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
            );
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(name(step));
            bar.enable_steady_tick(BAR_EVERY);
            bar
        });
        bar.set_position(done);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Send => "sending",
        Step::Copy => "copying",
        Step::Prove => "proving the copy",
        Step::Fetch => "reading",
    }
}

/// Bytes a second, and the seconds that are left at that rate.
fn pace(done: u64, total: u64, taken: Duration) -> (u64, Option<u64>) {
    let millis = taken.as_millis().max(1);
    let rate = u64::try_from(u128::from(done).saturating_mul(1000) / millis).unwrap_or(u64::MAX);
    (rate, total.saturating_sub(done).checked_div(rate))
}

fn line(step: Step, done: u64, total: u64, taken: Duration) -> String {
    let (rate, left) = pace(done, total, taken);
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    let mut text = format!(
        "{}: {percent} %, {} of {}, {}/s",
        name(step),
        bytes(done),
        bytes(total),
        bytes(rate)
    );
    if let Some(left) = left {
        // Writing to a string cannot fail.
        let _ = write!(text, ", {left} s left");
    }
    text.push('\n');
    text
}

fn line_in_json(step: Step, done: u64, total: u64, taken: Duration) -> String {
    let (rate, left) = pace(done, total, taken);
    let step = match step {
        Step::Send => "send",
        Step::Copy => "copy",
        Step::Prove => "prove",
        Step::Fetch => "fetch",
    };
    let text = json!({
        "progress": step,
        "bytes": done,
        "total_bytes": total,
        "bytes_per_second": rate,
        "seconds_left": left,
    });
    format!("{text}\n")
}

/// A number of bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // `tenths` counts tenths of the current unit.
    let mut tenths = u128::from(bytes) * 10;
    let mut units = UNITS.iter().copied().peekable();
    while let Some(unit) = units.next() {
        tenths = (tenths + 512) / 1024;
        if tenths < 10_240 || units.peek().is_none() {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (number, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_023_900, "999.9 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
    }

    #[test]
    fn lines_say_rate_and_time_left() {
        let taken = Duration::from_secs(10);
        let text = line(Step::Fetch, 50 << 20, 200 << 20, taken);
        assert_eq!(text, "reading: 25 %, 50.0 MiB of 200.0 MiB, 5.0 MiB/s, 30 s left\n");
        // No byte was read yet, or there are no bytes to read.
        assert_eq!(line(Step::Fetch, 0, 9, taken), "reading: 0 %, 0 B of 9 B, 0 B/s\n");
        assert!(line(Step::Prove, 0, 0, Duration::ZERO).contains("100 %"));
        let json: serde_json::Value =
            serde_json::from_str(&line_in_json(Step::Copy, 5, 20, taken)).unwrap_or_default();
        assert_eq!((&json["progress"], &json["total_bytes"]), (&"copy".into(), &20.into()));
    }

    #[test]
    fn a_short_work_says_nothing_and_a_long_one_seldom() {
        let begun = Instant::now();
        let mut shown = Shown::new(Kind::Lines, begun);
        let mut said = 0;
        for second in 0..=20 {
            let (before, now) = (shown.last, begun + Duration::from_secs(second));
            shown.tell(Step::Fetch, second, 100, now);
            said += usize::from(shown.last != before);
        }
        assert_eq!(said, 4);
    }
}
