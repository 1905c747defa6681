//! A timer that is as fine as the kernel's, because the runtime's counts whole milliseconds and a link may have few of them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Waits on a descriptor of the kernel's, and on the runtime's timer where it gives none.
#[derive(Debug)]
pub(super) struct Timer(Option<AsyncFd<OwnedFd>>);

impl Timer {
    /// Must be called inside a runtime with I/O enabled.
    pub(super) fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        Self(descriptor.and_then(register))
    }

    /// Resolves at `at`, or at once when that has passed.
    pub(super) async fn until(&mut self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let Some(descriptor) = self.0.as_mut().filter(|fd| set(fd.get_ref(), left)) else {
            return tokio::time::sleep_until(at).await;
        };
        match descriptor.readable_mut().await {
            // Setting it anew takes the expiry away, so it need not be read.
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => tokio::time::sleep_until(at).await,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that do not own what they name; this one does"
)]
fn register(descriptor: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE).ok()
}

fn set(descriptor: &OwnedFd, left: Duration) -> bool {
    let value = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    timerfd_settime(descriptor, TimerfdTimerFlags::empty(), &once).is_ok()
}
