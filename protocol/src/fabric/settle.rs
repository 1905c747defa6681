//! How the machines inside the fabric hear of each other.
//!
//! Each machine's events become inputs of the others until nobody has anything to say; then their outputs move into
//! the fabric's own queues.

use alloc::vec::Vec;

use super::{Event, Fabric, Job, Purpose, Transmit};
use crate::admission;
use crate::directory;
use crate::flood::{self, Content, ItemKey, ItemKind};
use crate::neighbors;
use crate::transfer;
use crate::{Now, PeerId};

impl Fabric {
    /// Lets the machines hear of each other until all is quiet.
    pub(super) fn settle(&mut self, now: Now) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.neighbors.poll_event() {
                quiet = false;
                self.on_neighbors(now, event);
            }
            while let Some(event) = self.flood.poll_event() {
                quiet = false;
                self.on_flood(now, event);
            }
            while let Some(event) = self.directory.poll_event() {
                quiet = false;
                self.on_directory(now, event);
            }
            while let Some(event) = self.admission.poll_event() {
                quiet = false;
                self.on_admission(now, event);
            }
            while let Some(event) = self.transfers.poll_event() {
                quiet = false;
                self.events.push_back(Event::Transfer(event));
            }
            while let Some(transmit) = self.transfers.poll_transmit() {
                quiet = false;
                self.on_transfer_transmit(now, transmit);
            }
            if quiet {
                break;
            }
        }
        if self.neighbors.is_hungry() {
            self.offer_candidates(now);
        }
        self.collect();
    }

    /// Tells the neighbors of a few members at random: they do not keep everyone whom the directory knows.
    fn offer_candidates(&mut self, now: Now) {
        if self.directory.len() <= neighbors::PEERS_KNOWN_MAX {
            return;
        }
        let key = PeerId(self.random.bytes());
        let candidates: Vec<_> = self
            .directory
            .records_from(key)
            .take(neighbors::CANDIDATES)
            .map(|record| (record.member.peer, record.body.addresses.0.clone()))
            .collect();
        for (peer, addresses) in candidates {
            self.neighbors_input(now, neighbors::Input::Candidate { peer, addresses });
        }
    }

    /// Asks for a connection to a peer, with the addresses that the directory has.
    pub(super) fn want_known(&mut self, now: Now, peer: PeerId) {
        if let Some(record) = self.directory.record(&peer) {
            let addresses = record.body.addresses.0.clone();
            self.neighbors_input(now, neighbors::Input::Candidate { peer, addresses });
        }
        self.neighbors_input(now, neighbors::Input::Want { peer });
    }

    fn on_neighbors(&mut self, now: Now, event: neighbors::Event) {
        match event {
            neighbors::Event::Up {
                peer,
                conn,
                restarted,
            } => {
                if let Some(old) = self.up.insert(peer, conn) {
                    self.flood.link_down(now, old);
                }
                self.flood.link_up(conn);
                self.transfers_input(now, transfer::Input::PeerUp { peer });
                self.admission.renew_if_due(now, conn, peer);
                self.events.push_back(Event::PeerUp {
                    peer,
                    conn,
                    restarted,
                });
            }
            neighbors::Event::Moved { peer, conn } => {
                if let Some(old) = self.up.insert(peer, conn) {
                    self.flood.link_down(now, old);
                }
                self.flood.link_up(conn);
                // Frames in flight on the old connection may be lost: each transfer says again what it last said.
                self.transfers_input(now, transfer::Input::PeerUp { peer });
                self.events.push_back(Event::PeerMoved { peer, conn });
            }
            neighbors::Event::Down { peer } => {
                if let Some(conn) = self.up.remove(&peer) {
                    self.flood.link_down(now, conn);
                }
                self.transfers_input(now, transfer::Input::PeerDown { peer });
                self.events.push_back(Event::PeerDown { peer });
            }
            neighbors::Event::Unreachable { peer } => self.events.push_back(Event::PeerUnreachable { peer }),
        }
    }

    pub(super) fn on_flood(&mut self, now: Now, event: flood::Event) {
        match event {
            flood::Event::Accepted { key, content } => match content {
                Content::Record(record) if self.admission.is_revoked(&record.member.serial) => {
                    self.flood.remove(&key);
                }
                Content::Record(record) => self.directory.insert(record),
                Content::Revocation(revocation) => self.on_revocation(now, key, (*revocation).clone()),
            },
            // A newer version may have come while the news of the old one's end was waiting.
            flood::Event::Expired(key) if self.flood.get(&key).is_some() => {}
            flood::Event::Expired(key) => match key.kind {
                ItemKind::Record if key.origin == self.local => self.publish_record(now),
                ItemKind::Record => self.directory.remove(&key.origin),
                ItemKind::Revocation | ItemKind::Other(_) => {}
            },
            flood::Event::Reclaim(key) => match key.kind {
                ItemKind::Record => self.publish_record(now),
                ItemKind::Revocation | ItemKind::Other(_) => {}
            },
        }
    }

    // [CERT-9]
    fn on_revocation(&mut self, now: Now, key: ItemKey, revocation: flood::Revocation) {
        let (peer, serial, name) = (revocation.peer, revocation.serial, revocation.name.clone());
        if !self.admission.handle_revocation(now, revocation) {
            return;
        }
        if let Some(item) = self.flood.get(&key).cloned() {
            self.admission.keep_revocation(serial, item);
        }
        let local = self
            .admission
            .own()
            .is_some_and(|(_, member)| member.serial == serial);
        if self.directory.member(&peer).is_some_and(|m| m.serial == serial) {
            self.directory.remove(&peer);
            self.flood.remove(&ItemKey {
                origin: peer,
                kind: ItemKind::Record,
                id: 0,
            });
        }
        // A peer that was admitted again holds another certificate and stays.
        let connected_by_it = self
            .conns
            .values()
            .any(|c| c.peer == peer && c.member.as_ref().is_some_and(|m| m.serial == serial));
        let admitted_anew = !connected_by_it
            && self
                .conns
                .values()
                .any(|c| c.peer == peer && c.purpose == Purpose::Prompt);
        if !admitted_anew && peer != self.local {
            self.transfers_input(now, transfer::Input::PeerRevoked { peer });
            // The aborts go out before the connection that they need is closed.
            while let Some(transmit) = self.transfers.poll_transmit() {
                self.on_transfer_transmit(now, transmit);
            }
            self.neighbors_input(now, neighbors::Input::Remove { peer });
        }
        self.events.push_back(Event::Revoked {
            peer,
            name,
            serial,
            local,
        });
    }

    fn on_directory(&mut self, now: Now, event: directory::Event) {
        match event {
            directory::Event::Learned { peer, bootstrap } => {
                if self.neighbors.has_place(peer, bootstrap)
                    && let Some(record) = self.directory.record(&peer)
                {
                    let addresses = record.body.addresses.0.clone();
                    self.neighbors_input(
                        now,
                        neighbors::Input::Learned {
                            peer,
                            addresses,
                            bootstrap,
                        },
                    );
                }
            }
            directory::Event::Forgotten(_) => {}
            directory::Event::NodeAppeared { node_id, peer } => {
                self.events.push_back(Event::NodeAppeared { node_id, peer });
            }
            directory::Event::NodeGone(node_id) => self.events.push_back(Event::NodeGone(node_id)),
            directory::Event::Duplicate { node_id, holder } => {
                self.events.push_back(Event::DuplicateNode { node_id, holder });
            }
        }
    }

    fn on_admission(&mut self, now: Now, event: admission::Event) {
        match event {
            admission::Event::Joined(member) => {
                self.publish_record(now);
                self.events.push_back(Event::Joined(member));
            }
            admission::Event::Refused(refusal) => self.events.push_back(Event::JoinRefused(refusal)),
            admission::Event::BadReply => self.events.push_back(Event::JoinBadReply),
            admission::Event::Admitted { peer, name } => {
                self.events.push_back(Event::Admitted { peer, name });
            }
            admission::Event::RefusedOther { peer, refusal } => {
                self.events.push_back(Event::RefusedJoin { peer, refusal });
            }
            admission::Event::Persisted { id, ok } => self.events.push_back(Event::Persisted { id, ok }),
        }
    }

    fn on_transfer_transmit(&mut self, now: Now, transmit: transfer::Output) {
        match transmit {
            transfer::Output::Frame { peer, frame } => {
                if let Some(conn) = self.up.get(&peer) {
                    self.transmits.push_back(Transmit::Frame { conn: *conn, frame });
                }
            }
            transfer::Output::Want { peer } => self.want_known(now, peer),
            transfer::Output::Unwant { peer } => self.neighbors_input(now, neighbors::Input::Unwant { peer }),
            transfer::Output::Payload(order) => self.transmits.push_back(Transmit::Payload(order)),
        }
    }

    /// Moves the machines' outputs into this machine's queues.
    fn collect(&mut self) {
        while let Some(transmit) = self.neighbors.poll_transmit() {
            self.transmits.push_back(match transmit {
                neighbors::Transmit::Frame { conn, frame } => Transmit::Frame { conn, frame },
                neighbors::Transmit::Dial { peer, addresses } => Transmit::Dial {
                    peer,
                    addresses,
                    purpose: Purpose::Prompt,
                },
                neighbors::Transmit::Close { conn, reason } => Transmit::Close { conn, reason },
            });
        }
        while let Some((conn, frame)) = self.flood.poll_transmit() {
            self.transmits.push_back(Transmit::Frame { conn, frame });
        }
        while let Some((conn, frame)) = self.admission.poll_transmit() {
            self.transmits.push_back(Transmit::Frame { conn, frame });
        }
        // Without a mesh there is nobody whose items could be checked.
        while let Some(root) = self.admission.root().cloned()
            && let Some(job) = self.flood.poll_job()
        {
            let items = job.items;
            self.jobs.push_back(Job::Check { items, root });
        }
        while let Some(persist) = self.admission.poll_job() {
            self.jobs.push_back(Job::Persist(persist));
        }
        while let Some(job) = self.transfers.poll_job() {
            self.jobs.push_back(Job::Transfer(job));
        }
    }
}
