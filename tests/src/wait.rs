//! Waiting for a condition, with a deadline. Tests have no other way to let time pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for what should happen at once; long, because the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` yields a value.
///
/// # Errors
/// After `deadline`, an error that says what was waited for; and any error of the condition itself at once.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} for {what}");
        }
        pause(POLL);
    }
}

/// Lets `time` pass between two looks at a condition.
pub(crate) fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where tests poll; every caller has a deadline"
    )]
    std::thread::sleep(time);
}

/// As [`eventually`], for a condition that is met or not.
///
/// # Errors
/// As [`eventually`].
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    eventually(what, deadline, || Ok(condition()?.then_some(())))
}

/// Takes a value once per interval for as long as `time` lasts, and returns the largest.
///
/// # Errors
/// The first error of `sample`.
pub fn largest_during<T: Ord>(time: Duration, mut sample: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + time;
    let mut largest = sample()?;
    while Instant::now() < end {
        pause(POLL);
        largest = largest.max(sample()?);
    }
    Ok(largest)
}
