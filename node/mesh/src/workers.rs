//! The threads that hash, compress and touch the disk, so that the thread that reads the network never does.
//!
//! One pool serves every node of a process: threads are made once, and a thousand idle nodes add none. There are two
//! lanes, because a disk can hold an fsync for a second and hashing must go on meanwhile. Waiting for a place in a
//! lane is asynchronous; nothing here blocks its caller, except that dropping the last handle joins the threads.
//! It deliberately knows nothing about what the work is.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Jobs that wait for a thread of one lane, beyond those that run; further callers wait asynchronously.
pub const WORKER_QUEUE_MAX: usize = 64;

/// Threads of the lane for syncs. Two, so that one transfer's slow fsync does not hold up every other transfer's.
const SYNC_THREADS: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

/// Which threads a job runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Work that needs a core: hashing, compressing, reading and writing pages.
    Compute,
    /// Work that mostly waits for a device: syncs and journal commits.
    Sync,
}

/// The work could not be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// The job panicked; the panic's message is in the log.
    #[error("a background job panicked")]
    Panicked,
}

/// A fixed set of threads, shared by cloning the handle; the last handle that goes away joins them.
#[derive(Clone, Debug)]
pub struct WorkerPool {
    shared: Arc<Shared>,
    lag: Option<Lag>,
}

/// What every job of a handle waits before it may begin, as on a slow machine; clones share it, and it may change.
#[derive(Clone, Debug, Default)]
pub struct Lag(Arc<AtomicU64>);

impl Lag {
    /// Lets jobs from now on wait this long.
    pub fn set(&self, lag: Duration) {
        let nanos = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Shared {
    compute: LaneThreads,
    sync: LaneThreads,
}

#[derive(Debug)]
struct LaneThreads {
    /// `None` only while the lane is being dropped: closing the channel is what ends its threads.
    queue: Option<Sender<Queued>>,
    slots: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

struct Queued {
    work: Work,
    slot: OwnedSemaphorePermit,
}

/// A place in a lane's queue: work put into it starts without any further wait for room.
#[derive(Debug)]
pub struct Slot {
    queue: Sender<Queued>,
    slot: OwnedSemaphorePermit,
}

impl WorkerPool {
    /// Starts the threads of both lanes; `compute` is the number of those that hash and copy.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(compute: NonZeroUsize) -> io::Result<Self> {
        let shared = Shared {
            compute: LaneThreads::start("hf-work", compute.get())?,
            sync: LaneThreads::start("hf-sync", SYNC_THREADS)?,
        };
        Ok(Self {
            shared: Arc::new(shared),
            lag: None,
        })
    }

    /// Returns a handle of the same threads whose jobs wait first, without holding up anybody else's.
    #[must_use]
    pub fn lagging(&self, lag: Lag) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            lag: Some(lag),
        }
    }

    /// Starts as many computing threads as this process may use cores.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn with_available_cores() -> io::Result<Self> {
        Self::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Runs `work` on a computing thread and returns what it returns.
    ///
    /// Work that was handed over runs to its end even when the future is dropped.
    ///
    /// # Errors
    /// When the work panics.
    pub async fn run<T, F>(&self, work: F) -> Result<T, WorkerError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.run_on(Lane::Compute, work).await
    }

    /// Runs `work` on a thread of `lane` and returns what it returns.
    ///
    /// # Errors
    /// When the work panics.
    pub async fn run_on<T, F>(&self, lane: Lane, work: F) -> Result<T, WorkerError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.slot(lane).await.run(work).await
    }

    /// Waits for a place in a lane's queue.
    pub async fn slot(&self, lane: Lane) -> Slot {
        let lag = self.lag.as_ref().map_or(Duration::ZERO, Lag::get);
        if !lag.is_zero() {
            tokio::time::sleep(lag).await;
        }
        let lane = match lane {
            Lane::Compute => &self.shared.compute,
            Lane::Sync => &self.shared.sync,
        };
        let slot = Arc::clone(&lane.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let queue = lane
            .queue
            .clone()
            .expect("the queue is taken only by the drop of the last handle");
        Slot { queue, slot }
    }
}

/// Work that was handed over; it runs to its end even when this is dropped.
#[derive(Debug)]
pub struct Running<T> {
    result: oneshot::Receiver<T>,
}

impl<T> Future for Running<T> {
    type Output = Result<T, WorkerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result)
            .poll(context)
            .map_err(|_| WorkerError::Panicked)
    }
}

impl Slot {
    /// Hands the work over at once and returns what becomes its result.
    pub fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        let (answer, result) = oneshot::channel();
        self.spawn(move || {
            // The asker may be gone; its work was still worth finishing, its result is not.
            let _ = answer.send(work());
        });
        Running { result }
    }

    /// Hands the work over; it runs without anybody waiting for it.
    pub fn spawn(self, work: impl FnOnce() + Send + 'static) {
        let queued = Queued {
            work: Box::new(work),
            slot: self.slot,
        };
        self.queue
            .try_send(queued)
            .unwrap_or_else(|_| unreachable!("a slot is a reserved place in an open queue"));
    }
}

impl LaneThreads {
    fn start(name: &str, count: usize) -> io::Result<Self> {
        let (queue, jobs) = bounded(WORKER_QUEUE_MAX);
        let mut lane = Self {
            queue: Some(queue),
            slots: Arc::new(Semaphore::new(WORKER_QUEUE_MAX)),
            threads: Vec::with_capacity(count),
        };
        for index in 0..count {
            let jobs: Receiver<Queued> = jobs.clone();
            let thread = thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || work_until_closed(&jobs))?;
            lane.threads.push(thread);
        }
        Ok(lane)
    }
}

fn work_until_closed(jobs: &Receiver<Queued>) {
    while let Ok(Queued { work, slot }) = jobs.recv() {
        // The place in the queue is free as soon as the job has left it.
        drop(slot);
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a background job panicked");
        }
    }
}

impl Drop for LaneThreads {
    fn drop(&mut self) {
        drop(self.queue.take());
        let current = thread::current().id();
        for thread in self.threads.drain(..) {
            // The last handle can be owned by a job: a thread cannot join itself.
            if thread.thread().id() != current {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> WorkerPool {
        WorkerPool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn work_runs_off_the_calling_thread() {
        let here = thread::current().id();
        let there = pool(1).run(|| thread::current().id()).await.unwrap();
        assert_ne!(here, there);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives_on() {
        let pool = pool(1);
        let failed = pool.run(|| panic!("on purpose")).await;
        assert_eq!(failed, Err::<(), _>(WorkerError::Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_makes_callers_wait_and_loses_nothing() {
        let pool = pool(2);
        let done = Arc::new(AtomicUsize::new(0));
        let jobs = (0..WORKER_QUEUE_MAX * 4).map(|_| {
            let done = Arc::clone(&done);
            pool.run(move || done.fetch_add(1, Ordering::Relaxed))
        });
        futures::future::join_all(jobs).await;
        assert_eq!(done.load(Ordering::Relaxed), WORKER_QUEUE_MAX * 4);
    }

    #[tokio::test]
    async fn dropping_the_last_handle_finishes_the_work_and_joins() {
        let pool = pool(1);
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let done = Arc::clone(&done);
            let keeps_pool = pool.clone();
            pool.slot(Lane::Compute).await.spawn(move || {
                done.fetch_add(1, Ordering::Relaxed);
                drop(keeps_pool);
            });
        }
        drop(pool);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while done.load(Ordering::Relaxed) < 10 {
            assert!(std::time::Instant::now() < deadline, "jobs were lost");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn jobs_of_a_lagging_handle_wait_and_those_of_others_do_not() {
        let (pool, lag) = (pool(1), Lag::default());
        let slow = pool.lagging(lag.clone());
        lag.set(Duration::from_secs(3600));
        let waits = tokio::time::timeout(Duration::from_millis(20), slow.run(|| 1)).await;
        assert!(waits.is_err());
        assert_eq!(pool.run(|| 2).await, Ok(2));
        lag.set(Duration::from_millis(50));
        let begun = std::time::Instant::now();
        assert_eq!(slow.run(|| 3).await, Ok(3));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn a_blocked_sync_does_not_hold_up_computing() {
        let pool = pool(1);
        let (release, wait) = bounded::<()>(0);
        let blocked = pool.run_on(Lane::Sync, move || wait.recv().is_ok());
        tokio::pin!(blocked);
        tokio::select! {
            biased;
            _ = &mut blocked => panic!("nothing has released it"),
            answer = pool.run(|| 1) => assert_eq!(answer, Ok(1)),
        }
        drop(release);
        assert_eq!(blocked.await, Ok(false));
    }
}
