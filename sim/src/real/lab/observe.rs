//! Peers that join one after the other, at given times, and are then left alone: how long each takes to know the others,
//! and what they have sent each other by the end.

use std::time::Duration;

use hyperfabric_mesh::driver::{Handle, Traffic};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Lab, Running, start_one};
use crate::real::{Datagrams, OnProgress, Phase, Progress, RealConfig, RealError, Spread};

/// When the peers start, and when all is over.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// When each starts, in the order of their places.
    pub starts: Vec<Duration>,
    /// How long the mesh is left alone after the last start.
    pub rest: Duration,
    /// How often it is looked whether a peer knows the others.
    pub look: Duration,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Observation {
    /// How long each peer took from its start until it knew as many as had started up to then, itself included.
    pub joins: Vec<Option<Duration>>,
    /// Peers that knew all in the end.
    pub know_all: usize,
    /// What each has received.
    pub traffic: Vec<Traffic>,
    /// Connections in the end.
    pub connections: Spread,
    /// Dials of each.
    pub dials: Spread,
    /// What became of datagrams.
    pub datagrams: Datagrams,
}

/// Lets real peers join as planned, and watches them.
///
/// # Errors
/// [`RealError`] when a peer cannot be made or ends by itself.
pub fn observe(
    config: &RealConfig,
    schedule: &Schedule,
    on_progress: OnProgress<'_>,
) -> Result<Observation, RealError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(2)
        .build()
        .map_err(RealError::Runtime)?;
    runtime.block_on(async {
        let lab = Lab::new(config, on_progress)?;
        lab.observe(config, schedule, on_progress).await
    })
}

impl Lab {
    async fn observe(
        self,
        config: &RealConfig,
        schedule: &Schedule,
        on_progress: OnProgress<'_>,
    ) -> Result<Observation, RealError> {
        let addresses = self.addresses()?;
        let of = self.seeds.len();
        let (mut peers, mut watchers) = (Vec::with_capacity(of), JoinSet::new());
        let begun = Instant::now();
        for (place, (seed, contacts)) in self.seeds.into_iter().zip(&config.contacts).enumerate() {
            let contacts = contacts.iter().filter_map(|at| addresses.get(*at));
            let contacts = contacts.copied().collect();
            let at = schedule.starts.get(place).copied().unwrap_or_default();
            sleep_until(begun + at).await;
            let peer = start_one(seed, place, contacts, &self.bed).await?;
            let end = Instant::now() + schedule.rest;
            watchers.spawn(join(peer.node.handle().clone(), place, schedule.look, end));
            peers.push(peer);
            on_progress(Progress {
                phase: Phase::Start,
                done: place + 1,
                of,
            });
        }
        let running = Running { peers, bed: self.bed };
        sleep(schedule.rest).await;
        let mut joins = vec![None; of];
        while let Some(watched) = watchers.join_next().await {
            let Ok((place, took)) = watched else { continue };
            joins[place] = took;
        }
        let observation = running.observation(joins).await?;
        running.stop().await;
        Ok(observation)
    }
}

/// Waits until a peer knows as many as have started up to then, or the end. Returns how long that took.
async fn join(handle: Handle, place: usize, look: Duration, end: Instant) -> (usize, Option<Duration>) {
    let begun = Instant::now();
    while Instant::now() < end {
        match handle.act(|fabric, _| fabric.directory().len()).await {
            Ok(known) if known > place => return (place, Some(begun.elapsed())),
            Ok(_) => sleep(look).await,
            Err(_) => break,
        }
    }
    (place, None)
}

impl Running {
    async fn observation(&self, joins: Vec<Option<Duration>>) -> Result<Observation, RealError> {
        let mut know_all = 0;
        for place in 0..self.peers.len() {
            know_all += usize::from(self.known(place).await? == self.peers.len());
        }
        let (connections, dials) = self.degrees().await?;
        let traffic = self.peers.iter().map(|peer| peer.node.handle().traffic());
        Ok(Observation {
            joins,
            know_all,
            traffic: traffic.collect(),
            connections,
            dials,
            datagrams: self.datagrams(),
        })
    }
}
