//! The clocks of a peer, read in one place.
//!
//! The machines of `hyperfabric-protocol` take the time as an argument; the driver reads it here. Tests and the
//! simulator bring their own.

use std::time::{SystemTime, UNIX_EPOCH};

use hyperfabric_protocol::{Instant, Now, UnixMillis};

/// Where a driver reads the time.
pub trait Clock: Send + Sync {
    /// Returns both clocks, read together.
    fn now(&self) -> Now;
}

/// The operating system's clocks. Monotonic time is tokio's, so that a paused runtime pauses it too.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: tokio::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            origin: tokio::time::Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let mono = self.origin.elapsed().as_nanos();
        // A clock set before 1970 makes every certificate not yet valid, which is the right complaint.
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        Now {
            mono: Instant(u64::try_from(mono).unwrap_or(u64::MAX)),
            wall: UnixMillis(u64::try_from(wall).unwrap_or(u64::MAX)),
        }
    }
}
