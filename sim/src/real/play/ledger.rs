//! What was sent in a scenario and what became of it: as its users remember it, as its senders' journals have it, and as it
//! lies in the inboxes of its receivers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use hyperfabric_node::node::{NewTransfer, Node};
use hyperfabric_node::store::OutgoingState;
use hyperfabric_node::workers::WorkerPool;
use hyperfabric_node::{DataType, NodeId, PacketPriority, TransferId};
use hyperfabric_protocol::Instant as Moment;
use hyperfabric_protocol::fabric::Event;
use hyperfabric_protocol::transfer::TransferEvent;
use tokio::time::Instant;

use super::recording::Span;
use super::site::{Heard, Site};
use crate::check::Findings;
use crate::real::Delivery;
use crate::real::load::{End, delivery, inbox_has, inbox_path};
use crate::real::testbed::Testbed;
use crate::world::PeerIndex;

const NAME: &str = "transfers";

/// A file to be sent.
pub(super) struct Order {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) name: String,
    pub(super) bytes: usize,
    /// What its bytes follow from, with its name.
    pub(super) seed: u64,
    /// For how long its destination is looked for.
    pub(super) wait: Duration,
    pub(super) timeout: Duration,
}

/// What came of an order.
pub(super) struct Begun {
    number: usize,
    made: Option<(PathBuf, blake3::Hash)>,
    result: Result<TransferId, String>,
}

/// How far a transfer is.
enum State {
    /// It is being begun.
    Ordered,
    Open(TransferId),
    /// Its sender's user was told that it is delivered, after so many milliseconds; the inbox is still to be looked at.
    Delivered(f64),
    Ended(End),
}

struct Sent {
    from: usize,
    to: usize,
    name: String,
    made: Option<(PathBuf, blake3::Hash)>,
    begun: Instant,
    /// When its sender's user was told how it ended.
    ended: Option<Instant>,
    state: State,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    sent: Vec<Sent>,
    by_id: BTreeMap<TransferId, usize>,
    /// Ends of which was heard before the transfer's id was.
    early: BTreeMap<TransferId, (Instant, Result<[u8; 32], String>)>,
    answers: Vec<End>,
    messages: Vec<Span>,
    /// Messages that have not ended.
    asking: usize,
}

impl Ledger {
    /// Notes that a message was sent.
    pub(super) const fn ask(&mut self) {
        self.asking += 1;
    }

    pub(super) fn answered(&mut self, begun: Instant, end: End) {
        self.asking -= 1;
        let good = matches!(end, End::Arrived(_));
        self.messages.push(Span {
            begun,
            ended: Some((Instant::now(), good)),
        });
        self.answers.push(end);
    }

    /// Begins a transfer, if its sender's process runs.
    pub(super) fn send(
        &mut self,
        order: Order,
        bed: &Testbed,
        sites: &[Site],
    ) -> Option<impl Future<Output = Begun> + Send + 'static> {
        let node = sites.get(order.from)?.node()?.clone();
        let to = sites.get(order.to)?.name.clone();
        let number = self.sent.len();
        self.sent.push(Sent {
            from: order.from,
            to: order.to,
            name: order.name.clone(),
            made: None,
            begun: Instant::now(),
            ended: None,
            state: State::Ordered,
        });
        let bed = bed.clone();
        Some(async move {
            let (name, bytes, seed) = (order.name.clone(), order.bytes, order.seed);
            let pool = bed.pool.clone();
            let made = pool.run(move || bed.file(&name, seed, bytes)).await;
            let made = match made {
                Ok(Ok(made)) => made,
                Ok(Err(error)) => return failed(number, format!("cannot make a payload: {error}")),
                Err(error) => return failed(number, error.to_string()),
            };
            let result = begin(&node, &order, to, &made.0).await;
            Begun {
                number,
                made: Some(made),
                result,
            }
        })
    }

    pub(super) fn begun(&mut self, begun: Begun) {
        let sent = &mut self.sent[begun.number];
        sent.made = begun.made;
        match begun.result {
            Ok(transfer) => {
                sent.state = State::Open(transfer);
                self.by_id.insert(transfer, begun.number);
                if let Some((at, result)) = self.early.remove(&transfer) {
                    self.ended(transfer, at, result);
                }
            }
            Err(error) => sent.end(End::Failed(error)),
        }
    }

    pub(super) fn hear(&mut self, heard: &Heard) {
        let Event::Transfer(TransferEvent::Ended { of, result }) = &heard.event else {
            return;
        };
        let result = match result {
            Ok(ended) => Ok(ended.root),
            Err(error) => Err(error.to_string()),
        };
        if self.by_id.contains_key(&of.transfer) {
            self.ended(of.transfer, heard.at, result);
        } else {
            self.early.insert(of.transfer, (heard.at, result));
        }
    }

    fn ended(&mut self, transfer: TransferId, at: Instant, result: Result<[u8; 32], String>) {
        let sent = self.by_id.get(&transfer).map(|number| &mut self.sent[*number]);
        let Some(sent) = sent.filter(|sent| matches!(sent.state, State::Open(_))) else {
            return;
        };
        match result {
            Ok(root)
                if sent
                    .made
                    .as_ref()
                    .is_some_and(|(_, digest)| *digest.as_bytes() == root) =>
            {
                let took = at.saturating_duration_since(sent.begun);
                sent.ended = Some(at);
                sent.state = State::Delivered(took.as_secs_f64() * 1e3);
            }
            Ok(_) => sent.end(End::Damaged),
            Err(error) => sent.end(End::Failed(error)),
        }
    }

    /// Looks at journals and inboxes of those that run.
    pub(super) async fn look(&mut self, now: Moment, sites: &[Site], pool: &WorkerPool, to: &mut Findings) {
        for number in 0..self.sent.len() {
            let sent = &self.sent[number];
            match sent.state {
                State::Open(transfer) => self.look_at_journal(now, number, transfer, sites, to),
                State::Delivered(took) if sites[sent.to].node().is_some() => {
                    let (storage, sender) = (sites[sent.to].storage(), sites[sent.from].name.clone());
                    let (name, made) = (sent.name.clone(), sent.made.clone());
                    let look = move || {
                        let whole =
                            made.is_some_and(|(_, digest)| inbox_has(&*storage, &sender, &name, &digest));
                        // Its owner takes it away, so that disks in memory do not fill up.
                        if let Some(path) = inbox_path(&sender, &name).filter(|_| whole) {
                            let _ = storage.remove(&path);
                            let _ = storage.sync_folder(&path.parent());
                        }
                        whole
                    };
                    let whole = pool.run(look).await.unwrap_or(false);
                    if !whole {
                        let what = format!(
                            "{} counts as delivered, and the inbox does not have it",
                            sent.name
                        );
                        to.add(NAME, now, Some(PeerIndex(sent.to)), what);
                    }
                    let end = if whole { End::Arrived(took) } else { End::Damaged };
                    self.sent[number].end(end);
                }
                State::Delivered(_) | State::Ordered | State::Ended(_) => {}
            }
        }
    }

    fn look_at_journal(
        &mut self,
        now: Moment,
        number: usize,
        transfer: TransferId,
        sites: &[Site],
        to: &mut Findings,
    ) {
        let from = self.sent[number].from;
        // A process that does not run, or a disk that fails, says nothing.
        let Some(Ok(record)) = sites[from].store().map(|store| store.outgoing(transfer)) else {
            return;
        };
        match record.map(|record| record.state) {
            Some(OutgoingState::Active) => {}
            Some(OutgoingState::Delivered { root, .. }) => self.ended(transfer, Instant::now(), Ok(root)),
            Some(OutgoingState::Failed { fault, .. }) => {
                self.ended(transfer, Instant::now(), Err(fault.to_string()));
            }
            None => {
                let name = &self.sent[number].name;
                let what = format!("{name} was begun, and the journal has forgotten it");
                to.add(NAME, now, Some(PeerIndex(from)), what);
                self.sent[number].end(End::Failed("forgotten by the journal".to_owned()));
            }
        }
    }

    /// Whether everything that was sent has ended.
    pub(super) fn is_over(&self) -> bool {
        self.asking == 0 && self.sent.iter().all(|sent| matches!(sent.state, State::Ended(_)))
    }

    /// Says what has not ended.
    pub(super) fn end(&self, now: Moment, sites: &[Site], to: &mut Findings) {
        for sent in &self.sent {
            let peer = Some(PeerIndex(sent.from));
            let what = match &sent.state {
                // A sender whose process is gone has nobody to tell.
                State::Open(_) | State::Ordered if sites[sent.from].node().is_none() => continue,
                State::Ordered => format!("{} was neither begun nor refused", sent.name),
                State::Open(transfer) => format!("{} has not ended: transfer {transfer}", sent.name),
                State::Delivered(_) => format!("{} counts as delivered to a peer that is gone", sent.name),
                State::Ended(_) => continue,
            };
            to.add(NAME, now, peer, what);
        }
    }

    /// When transfers were begun, and when and how they ended.
    pub(super) fn transfer_spans(&self) -> impl Iterator<Item = Span> {
        self.sent.iter().map(|sent| {
            let good = matches!(sent.state, State::Ended(End::Arrived(_)));
            Span {
                begun: sent.begun,
                ended: sent.ended.map(|at| (at, good)),
            }
        })
    }

    /// When messages that have ended were sent, and when and how they ended.
    pub(super) fn message_spans(&self) -> impl Iterator<Item = Span> {
        self.messages.iter().copied()
    }

    pub(super) fn transfers(&mut self) -> Delivery {
        let ends = self.sent.drain(..).map(|sent| match sent.state {
            State::Ended(end) => end,
            State::Ordered | State::Open(_) | State::Delivered(_) => End::Failed("has not ended".to_owned()),
        });
        delivery(ends.collect())
    }

    pub(super) fn messages(&mut self) -> Delivery {
        delivery(std::mem::take(&mut self.answers))
    }
}

impl Sent {
    fn end(&mut self, end: End) {
        if let Some((path, _)) = &self.made {
            // The folder goes at the end of the run whatever becomes of this.
            let _ = std::fs::remove_file(path);
        }
        self.ended.get_or_insert_with(Instant::now);
        self.state = State::Ended(end);
    }
}

fn failed(number: usize, error: String) -> Begun {
    Begun {
        number,
        made: None,
        result: Err(error),
    }
}

async fn begin(node: &Node, order: &Order, to: NodeId, path: &std::path::Path) -> Result<TransferId, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let new = NewTransfer {
        file: file.into(),
        path: Some(path.to_owned()),
        name: order.name.clone(),
        to,
        data_type: DataType::Generic,
        priority: PacketPriority::Medium,
        timeout: Some(order.timeout),
        wait: order.wait,
        sync: false,
    };
    node.send(new).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::name_of;

    #[tokio::test]
    async fn a_delivery_that_the_inbox_does_not_have_and_a_transfer_that_the_journal_forgot_are_found() {
        let bed = Testbed::new().unwrap();
        let (folder, _) = bed.found("sim", &name_of(0)).unwrap();
        let mut site = Site::new(&bed, name_of(0), folder, 1).unwrap();
        let (tell, _heard) = tokio::sync::mpsc::channel(64);
        site.start(&bed, 0, &tell).await.unwrap();
        let sent = |state| Sent {
            from: 0,
            to: 0,
            name: "t0-0".to_owned(),
            made: None,
            begun: Instant::now(),
            ended: None,
            state,
        };
        let mut ledger = Ledger {
            sent: vec![
                sent(State::Delivered(1.0)),
                sent(State::Open(TransferId([7; 16]))),
            ],
            ..Ledger::default()
        };
        let mut findings = Findings::default();
        let mut sites = [site];
        ledger.look(Moment(0), &sites, &bed.pool, &mut findings).await;
        let found: Vec<&str> = findings.all().iter().map(|found| found.what.as_str()).collect();
        assert!(
            found.len() == 2 && found[0].contains("inbox") && found[1].contains("journal"),
            "{found:?}"
        );
        assert!(ledger.is_over());
        assert_eq!(ledger.transfers().damaged, 1);
        sites[0].stop().await;
    }
}
