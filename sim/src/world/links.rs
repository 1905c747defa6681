//! Connections, and what QUIC makes of their links.
//!
//! Frames of a connection arrive in order, however long a lost packet holds them up. While the way is cut they wait;
//! when it is open again they arrive with a retransmission. A side that has heard nothing for
//! [`IDLE_TIMEOUT`](crate::conditions::IDLE_TIMEOUT) gives the connection up, and a side whose peer has given up or was
//! restarted hears that from the reset that answers its next packet. [QUIC-12] [QUIC-13]

use std::time::Duration;

use hyperfabric_protocol::cert::Membership;
use hyperfabric_protocol::fabric::{Input, Purpose, Transmit};
use hyperfabric_protocol::frame::{Frame, Goodbye};
use hyperfabric_protocol::neighbors::CloseReason;
use hyperfabric_protocol::{Address, ConnId, Instant, PeerId};

use super::trace::frame_bytes;
use super::{Happening, PeerIndex, World};
use crate::conditions::{Conditions, IDLE_TIMEOUT, KEEP_ALIVE, LossState, PACKET_BYTES, retransmission};
use crate::seed::{Draws, Stream};

/// How long a dial takes to fail that nobody answers. [QUIC-12]
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Packets of a handshake that nobody has measured a round trip before: the dialler's first, and two of the answer.
const HANDSHAKE_PACKETS: usize = 3;
/// How long one of these is waited for before it is sent again (RFC 9002, 6.2.2, and quinn's default).
const HANDSHAKE_PATIENCE: Duration = Duration::from_millis(999);
/// Frames that may be under way on a connection. [QUIC-14]
const UNREAD_FRAMES_MAX: u32 = 1_024;
/// And how many bytes of them, beside what the link itself holds. [QUIC-14]
const UNREAD_BYTES_MAX: u64 = 1 << 20;

/// What leaves in the first round trip: ten packets (RFC 9002, 7.2, and quinn's default).
const WINDOW_START: u64 = 10 * PACKET_BYTES;
/// What is left of that after a loss, in tenths (CUBIC, RFC 9438, 4.6), and what is left at least: two packets (RFC 9002,
/// 7.2).
const WINDOW_AFTER_LOSS: u64 = 7;
const WINDOW_MIN: u64 = 2 * PACKET_BYTES;
/// And what leaves at most: what a receiver has room for on one stream (`PROMPT_STREAM_WINDOW` of `hyperfabric_mesh`).
const WINDOW_MAX: u64 = 128 << 10;

/// A frame on its way.
#[derive(Debug)]
pub(super) enum Carried {
    /// Shared by both ends.
    Shared(Frame),
    /// As the bytes that travel.
    Bytes(Vec<u8>),
}

impl Flow {
    /// Returns when the last byte of a frame leaves. A window of bytes leaves in each round trip, and twice as many in
    /// the next one when that was not enough: a newcomer waits some round trips for a large directory (slow start,
    /// RFC 9002, 7.3.1). Beyond ten packets the window is spread over four fifths of the round trip (7.7, and quinn's
    /// pacer).
    fn departure(&mut self, now: Instant, bytes: u64, conditions: &Conditions) -> Instant {
        let round = conditions.latency.mean() * 2;
        let mut at = self.link_free.max(now);
        if at >= self.round_ends {
            self.round_ends = at.after(round);
            self.round_bytes = 0;
        }
        let mut left = bytes;
        loop {
            let leaves = left.min(self.window.saturating_sub(self.round_bytes));
            self.round_bytes += leaves;
            left -= leaves;
            if left == 0 {
                let paced = u128::from(self.round_bytes.saturating_sub(WINDOW_START));
                let nanos = round.as_nanos() * paced * 4 / u128::from(5 * self.window);
                let pace = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                let begun = Instant(
                    self.round_ends
                        .0
                        .saturating_sub(u64::try_from(round.as_nanos()).unwrap_or(0)),
                );
                return at.max(begun.after(pace)).after(conditions.transmission(bytes));
            }
            let grown = match self.slow_start {
                true => self.window * 2,
                false => self.window + PACKET_BYTES,
            };
            self.window = grown.min(WINDOW_MAX);
            at = at.max(self.round_ends);
            self.round_ends = at.after(round);
            self.round_bytes = 0;
        }
    }
}

impl Carried {
    fn code(&self) -> Option<u64> {
        match self {
            Self::Shared(frame) => Some(frame.code()),
            Self::Bytes(bytes) => Frame::code_of(bytes),
        }
    }
}

/// A dial in flight.
#[derive(Debug)]
pub(super) struct Dialling {
    from: PeerIndex,
    start: u32,
    peer: PeerId,
    to: Option<PeerIndex>,
    purpose: Purpose,
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    peer: PeerIndex,
    start: u32,
    /// Whether this side still has the connection.
    open: bool,
    /// Whether it has left with a Goodbye, and reads what comes until the other side's.
    drains: bool,
    /// Since when it hears nothing.
    deaf_since: Option<Instant>,
    /// What it sends.
    flow: Flow,
}

/// One direction of a connection.
#[derive(Debug)]
struct Flow {
    arrived: Instant,
    link_free: Instant,
    unread_frames: u32,
    unread_bytes: u64,
    /// What may leave in a round trip, what has left in this one, and when it ends.
    window: u64,
    /// Whether no packet was lost so far.
    slow_start: bool,
    round_bytes: u64,
    round_ends: Instant,
    jitter: Draws,
    loss: LossState,
    /// Frames that wait for the way to be open again.
    held: Vec<(Carried, u64)>,
}

/// A connection; the dialler is the first end. Its ends are called twice its number, and one more.
#[derive(Debug)]
pub(super) struct Connection {
    ends: [End; 2],
    purpose: Purpose,
    class: u16,
    /// Whether the dialler's first frame has arrived, and with it the stream on which the acceptor answers. [QUIC-5]
    has_stream: bool,
}

const fn conn_id(connection: u64, side: usize) -> ConnId {
    ConnId(connection * 2 + side as u64)
}

/// Returns a peer's address.
pub(super) fn address_of(index: PeerIndex) -> Address {
    // As long as a real one: records are most of what peers send each other.
    let [_, a, b, c] = u32::try_from(index.0).unwrap_or(u32::MAX).to_be_bytes();
    Address::new(format!("/ip4/10.{a}.{b}.{c}/udp/40000/quic-v1"))
        .expect("a short printable text is an address")
}

fn index_of(address: &Address) -> Option<PeerIndex> {
    let (ip, _) = address.as_str().strip_prefix("/ip4/10.")?.split_once('/')?;
    let byte = |text: &str| text.parse::<u8>().ok().map(usize::from);
    let index = ip
        .split('.')
        .try_fold(0, |index, text| Some(index << 8 | byte(text)?))?;
    Some(PeerIndex(index))
}

impl World {
    fn connection(&mut self, conn: ConnId) -> Option<(&mut Connection, usize)> {
        let slot = usize::try_from(conn.0 / 2).ok()?;
        let connection = self.connections.get_mut(slot)?.as_mut()?;
        Some((connection, usize::from(conn.0 % 2 == 1)))
    }

    pub(super) fn transmit(&mut self, index: PeerIndex, transmit: Transmit) {
        match transmit {
            Transmit::Frame { conn, frame } => self.send(index, conn, frame),
            Transmit::Dial {
                peer,
                addresses,
                purpose,
            } => self.dial(index, peer, &addresses, purpose),
            Transmit::Close { conn, reason } => {
                if conn.0 < self.connections.len() as u64 * 2 {
                    self.close(index, conn.0 / 2, reason);
                }
            }
            Transmit::Payload(order) => self.payload(index, order),
        }
    }

    fn send(&mut self, index: PeerIndex, conn: ConnId, frame: Frame) {
        let bytes = frame_bytes(&frame);
        let carried = if self.options.bytes {
            Carried::Bytes(frame.to_bytes())
        } else {
            Carried::Shared(frame)
        };
        let now = self.now;
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let (from, to, class) = (
            connection.ends[side].peer,
            connection.ends[1 - side].peer,
            connection.class,
        );
        if !connection.ends[side].open || from != index {
            return;
        }
        let waits = side == 1 && !connection.has_stream;
        let flow = &mut connection.ends[side].flow;
        flow.unread_frames += 1;
        flow.unread_bytes += bytes;
        let (frames, unread) = (flow.unread_frames, flow.unread_bytes);
        let conditions = *self.network.conditions(class);
        let queue = conditions.queue_bytes_max + UNREAD_BYTES_MAX;
        // A latency's worth of bytes is on the link itself.
        let under_way = conditions
            .bytes_per_second
            .saturating_mul(2 * latency_ms(&conditions))
            / 1000;
        if frames > UNREAD_FRAMES_MAX || unread > queue.saturating_add(under_way) {
            return self.cut_off(index, conn.0 / 2, CloseReason::LimitReached);
        }
        if waits || !self.network.passes(from, to) {
            if let Some((connection, side)) = self.connection(conn) {
                connection.ends[side].flow.held.push((carried, bytes));
            }
            return;
        }
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let departure = connection.ends[side].flow.departure(now, bytes, &conditions);
        self.fly(conn, carried, bytes, departure);
    }

    /// Schedules a frame's arrival.
    fn fly(&mut self, conn: ConnId, carried: Carried, bytes: u64, departure: Instant) {
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let class = connection.class;
        let conditions = *self.network.conditions(class);
        let Some((connection, _)) = self.connection(conn) else {
            return;
        };
        let flow = &mut connection.ends[side].flow;
        flow.link_free = departure;
        let mean = conditions.latency.mean();
        let latency = conditions.latency.draw(&mut flow.jitter) + flow.jitter.duration(conditions.jitter);
        let Some(delay) = retransmission(&mut flow.loss, conditions.loss, bytes, mean) else {
            // Packet after packet was lost: the other side gives up, and with it the connection.
            return self.deafen(conn_id(conn.0 / 2, 1 - side));
        };
        if !delay.is_zero() {
            flow.slow_start = false;
            flow.window = (flow.window * WINDOW_AFTER_LOSS / 10).max(WINDOW_MIN);
        }
        let arrival = departure.after(latency + delay).max(flow.arrived);
        flow.arrived = arrival;
        let to = conn_id(conn.0 / 2, 1 - side);
        self.schedule(
            arrival,
            Happening::Frame {
                conn: to,
                frame: carried,
                bytes,
            },
        );
    }

    /// Sends what a side has held back.
    fn release_held(&mut self, conn: ConnId) {
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let (from, to) = (connection.ends[side].peer, connection.ends[1 - side].peer);
        let class = connection.class;
        if !self.network.passes(from, to) {
            return;
        }
        let conditions = *self.network.conditions(class);
        let now = self.now;
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let flow = &mut connection.ends[side].flow;
        let held = std::mem::take(&mut flow.held);
        for (carried, bytes) in held {
            let Some((connection, side)) = self.connection(conn) else {
                return;
            };
            let departure = connection.ends[side].flow.departure(now, bytes, &conditions);
            self.fly(conn, carried, bytes, departure);
        }
    }

    pub(super) fn arrive(&mut self, conn: ConnId, carried: Carried, bytes: u64) {
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let flow = &mut connection.ends[1 - side].flow;
        flow.unread_frames = flow.unread_frames.saturating_sub(1);
        flow.unread_bytes = flow.unread_bytes.saturating_sub(bytes);
        let end = &connection.ends[side];
        if !end.open {
            if end.drains {
                self.control.add(carried.code(), bytes);
            }
            return;
        }
        let (peer, start) = (end.peer, end.start);
        if side == 1 && !std::mem::replace(&mut connection.has_stream, true) {
            self.release_held(conn);
        }
        self.trace.event(self.now, 7, peer.0);
        self.control.add(carried.code(), bytes);
        let input = match carried {
            Carried::Shared(frame) => {
                if let Frame::Items(items) = &frame {
                    self.items_received += items.items.len() as u64;
                }
                self.trace.frame(&frame);
                Input::Decoded { conn, frame }
            }
            Carried::Bytes(encoded) => {
                match Frame::from_bytes(&encoded) {
                    Ok(Some(frame)) => self.trace.frame(&frame),
                    Ok(None) | Err(_) => self.trace.bytes(&encoded),
                }
                let bytes = encoded;
                Input::Frame { conn, bytes }
            }
        };
        let now = self.clock(peer);
        let peer_state = &mut self.peers[peer.0];
        if peer_state.start == start
            && let Some(fabric) = &mut peer_state.fabric
        {
            fabric.handle_input(now, input);
            self.drain(peer);
        }
    }

    fn dial(&mut self, from: PeerIndex, peer: PeerId, addresses: &[Address], purpose: Purpose) {
        self.dials += 1;
        let start = self.peers[from.0].start;
        let known = addresses
            .iter()
            .find_map(index_of)
            .filter(|to| to.0 < self.peers.len());
        let known = known.filter(|to| self.answers(from, *to));
        let met = known.and_then(|to| Some((to, self.handshake(from, to)?)));
        let (to, delay) = met.map_or((None, DIAL_TIMEOUT), |(to, delay)| (Some(to), delay));
        let dialling = Dialling {
            from,
            start,
            peer,
            to,
            purpose,
        };
        self.schedule(self.now.after(delay), Happening::Dial(Box::new(dialling)));
    }

    /// Returns how long it takes until an acceptor lets a dialler in, or `None` when the dialler does not wait for that.
    fn handshake(&self, from: PeerIndex, to: PeerIndex) -> Option<Duration> {
        let conditions = self.network.conditions(self.network.class(from, to));
        // Dials have numbers of their own, apart from those of connections.
        let draws = self
            .seed
            .stream(Stream::Loss, from.0 as u64, self.dials | 1 << 63);
        let mut loss = LossState::new(draws);
        let mut delay = conditions.latency.mean() * 3;
        for _ in 0..HANDSHAKE_PACKETS {
            let mut wait = HANDSHAKE_PATIENCE;
            while loss.loses(conditions.loss) {
                delay += wait;
                wait *= 2;
                if delay > DIAL_TIMEOUT {
                    return None;
                }
            }
        }
        Some(delay)
    }

    fn answers(&self, from: PeerIndex, to: PeerIndex) -> bool {
        self.peers[to.0].fabric.is_some() && self.network.dials(from, to)
    }

    pub(super) fn dialled(&mut self, dialling: &Dialling) {
        let Dialling {
            from,
            start,
            peer,
            to,
            purpose,
        } = *dialling;
        if self.peers[from.0].start != start || self.peers[from.0].fabric.is_none() {
            return;
        }
        let failed = |permanent| Input::DialFailed {
            peer,
            purpose,
            permanent,
        };
        let Some(to) = to.filter(|to| self.answers(from, *to) && self.peers[to.0].id == peer) else {
            return self.input(from, start, failed(false));
        };
        // The handshake refuses whoever was revoked, and says so. [TLS-6]
        if purpose == Purpose::Prompt && self.revoked_at(to, from) {
            self.input(from, start, Input::RevokedBy { peer });
            return self.input(from, start, failed(true));
        }
        if purpose == Purpose::Prompt && self.revoked_at(from, to) {
            return self.input(from, start, failed(true));
        }
        let id = self.connections.len() as u64;
        let class = self.network.class(from, to);
        let ends = [from, to].map(|peer| self.new_end(id, peer));
        self.connections.push(Some(Box::new(Connection {
            ends,
            purpose,
            class,
            has_stream: false,
        })));
        for peer in [from, to] {
            self.peers[peer.0].conns.insert(id);
        }
        let latency = self.network.conditions(class).latency.mean();
        let welcome = self.now.after(latency);
        if let Some((connection, _)) = self.connection(conn_id(id, 1)) {
            // Nothing reaches the dialler before the welcome does.
            connection.ends[1].flow.arrived = welcome;
        }
        self.schedule(welcome, Happening::Welcome { conn: id });
        self.connected(id, 1);
    }

    fn new_end(&self, connection: u64, peer: PeerIndex) -> End {
        let number = peer.0 as u64;
        End {
            peer,
            start: self.peers[peer.0].start,
            open: true,
            drains: false,
            deaf_since: None,
            flow: Flow {
                arrived: self.now,
                link_free: self.now,
                unread_frames: 0,
                unread_bytes: 0,
                window: WINDOW_START,
                slow_start: true,
                round_bytes: 0,
                round_ends: self.now,
                jitter: self.seed.stream(Stream::Jitter, number, connection),
                loss: LossState::new(self.seed.stream(Stream::Loss, number, connection)),
                held: Vec::new(),
            },
        }
    }

    fn revoked_at(&self, judge: PeerIndex, shown_by: PeerIndex) -> bool {
        let serial = self
            .running(shown_by)
            .and_then(|f| f.admission().own())
            .map(|(_, m)| m.serial);
        let judge = self.running(judge).map(hyperfabric_protocol::Fabric::admission);
        judge
            .zip(serial)
            .is_some_and(|(judge, serial)| judge.is_revoked(&serial))
    }

    pub(super) fn welcome(&mut self, id: u64) {
        self.connected(id, 0);
    }

    /// Tells a side that a connection is up.
    fn connected(&mut self, id: u64, side: usize) {
        let conn = conn_id(id, side);
        let Some((connection, _)) = self.connection(conn) else {
            return;
        };
        let (me, other) = (&connection.ends[side], connection.ends[1 - side].peer);
        if !me.open {
            return;
        }
        let (index, start, purpose) = (me.peer, me.start, connection.purpose);
        let membership = self.running(other).and_then(|f| f.admission().own());
        let membership = membership.map(|(membership, _): (&Membership, _)| membership.to_bytes().into());
        let input = Input::Connected {
            conn,
            peer: self.peers[other.0].id,
            purpose,
            dialled: side == 0,
            address: (side == 0).then(|| address_of(other)),
            membership,
        };
        self.trace.word(conn.0);
        self.input(index, start, input);
    }

    /// Tells at which side of a connection a peer still has it.
    fn side_of(&mut self, index: PeerIndex, id: u64) -> Option<usize> {
        let (connection, _) = self.connection(conn_id(id, 0))?;
        let mine = |end: &End| end.peer == index && end.open;
        connection.ends.iter().position(mine)
    }

    /// Closes a connection because its peer's machine says so: what is nobody's fault by a last frame. [CONN-9]
    ///
    /// The other side's machine closes it as well when it reads that. Its own last frame does not arrive: nothing was
    /// asked on the connection, so that it is closed for good at once. [CONN-10]
    pub(super) fn close(&mut self, index: PeerIndex, id: u64, reason: CloseReason) {
        let Some(side) = self.side_of(index, id) else {
            return;
        };
        let mine = conn_id(id, side);
        let speaks = self.connection(mine).is_some_and(|(connection, _)| {
            let has_stream = side == 0 || connection.has_stream;
            connection.purpose == Purpose::Prompt && has_stream && connection.ends[1 - side].open
        });
        if !speaks || !reason.drains() {
            return self.cut_off(index, id, reason);
        }
        self.send(index, mine, Frame::Goodbye(Goodbye::new(reason)));
        // A side whose peer does not keep up was cut off instead.
        let Some((connection, _)) = self.connection(mine).filter(|(c, _)| c.ends[side].open) else {
            return;
        };
        connection.ends[side].open = false;
        connection.ends[side].drains = true;
        let other = connection.ends[1 - side].peer;
        let start = self.peers[index.0].start;
        self.peers[index.0].conns.remove(&id);
        self.schedule_own_end(index, start, mine);
        if !self.network.passes(index, other) {
            self.deafen(conn_id(id, 1 - side));
        }
    }

    /// Closes a connection from a peer's side, in words and at once.
    fn cut_off(&mut self, index: PeerIndex, id: u64, reason: CloseReason) {
        let Some(side) = self.side_of(index, id) else {
            return;
        };
        let Some((connection, _)) = self.connection(conn_id(id, side)) else {
            return;
        };
        connection.ends[side].open = false;
        let (other, class) = (connection.ends[1 - side].peer, connection.class);
        let start = self.peers[index.0].start;
        self.peers[index.0].conns.remove(&id);
        self.peers[index.0].ghosts.insert(id);
        let mine = conn_id(id, side);
        self.schedule_own_end(index, start, mine);
        let theirs = conn_id(id, 1 - side);
        if self.network.passes(index, other) {
            let conditions = *self.network.conditions(class);
            if let Some((connection, _)) = self.connection(mine) {
                let flow = &mut connection.ends[side].flow;
                let latency = conditions.latency.draw(&mut flow.jitter);
                let lost = flow.loss.loses(conditions.loss);
                let extra = if lost { KEEP_ALIVE } else { Duration::ZERO };
                let reason = (!lost).then_some(reason);
                let at = self.now.after(latency + extra);
                self.schedule(at, Happening::Closed { conn: theirs, reason });
            }
        } else {
            self.deafen(theirs);
        }
    }

    fn schedule_own_end(&mut self, index: PeerIndex, start: u32, conn: ConnId) {
        let input = Box::new(Input::Disconnected { conn, reason: None });
        let peer = index;
        self.schedule(self.now, Happening::Input { peer, start, input });
    }

    /// Ends a connection at one side.
    pub(super) fn end(&mut self, conn: ConnId, reason: Option<CloseReason>) {
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        let end = &mut connection.ends[side];
        if end.open {
            end.open = false;
            let (peer, start) = (end.peer, end.start);
            self.peers[peer.0].conns.remove(&(conn.0 / 2));
            self.trace.word(conn.0);
            self.input(peer, start, Input::Disconnected { conn, reason });
        }
        self.forget_ended(conn.0 / 2);
    }

    /// Lets the side that is left find out that the other one has no connection any more.
    fn forget_ended(&mut self, id: u64) {
        let Some((connection, _)) = self.connection(conn_id(id, 0)) else {
            return;
        };
        let open: Vec<usize> = (0..2).filter(|side| connection.ends[*side].open).collect();
        let peers = connection.ends.each_ref().map(|end| end.peer);
        match open[..] {
            [] => {
                self.connections[usize::try_from(id).unwrap_or(usize::MAX)] = None;
                for peer in peers {
                    self.peers[peer.0].ghosts.remove(&id);
                }
            }
            [side] => {
                self.peers[peers[1 - side].0].ghosts.insert(id);
                let conn = conn_id(id, side);
                self.deafen(conn);
                self.reset_if_answered(conn);
            }
            _ => {}
        }
    }

    /// Notes that a side hears nothing from now on.
    fn deafen(&mut self, conn: ConnId) {
        let now = self.now;
        if let Some((connection, side)) = self.connection(conn) {
            let end = &mut connection.ends[side];
            if end.open && end.deaf_since.is_none() {
                end.deaf_since = Some(now);
                self.schedule(now.after(IDLE_TIMEOUT), Happening::Idle { conn, since: now });
            }
        }
    }

    pub(super) fn idle(&mut self, conn: ConnId, since: Instant) {
        if let Some((connection, side)) = self.connection(conn)
            && connection.ends[side].deaf_since == Some(since)
        {
            self.end(conn, None);
        }
    }

    /// A side whose peer runs, can be reached, and has forgotten the connection, gets a reset for its next packet.
    fn reset_if_answered(&mut self, conn: ConnId) {
        let Some((connection, side)) = self.connection(conn) else {
            return;
        };
        if connection.ends[1 - side].open || !connection.ends[side].open {
            return;
        }
        let (me, other) = (connection.ends[side].peer, connection.ends[1 - side].peer);
        let class = connection.class;
        let wait = connection.ends[side].flow.jitter.duration(KEEP_ALIVE);
        if self.peers[other.0].fabric.is_some()
            && self.network.passes(me, other)
            && self.network.passes(other, me)
        {
            let latency = self.network.conditions(class).latency.mean();
            let at = self.now.after(wait + latency * 2);
            self.schedule(at, Happening::Closed { conn, reason: None });
        }
    }

    /// A peer's process is gone without a word.
    pub(super) fn abandon(&mut self, index: PeerIndex) {
        for id in self.peers[index.0].conns.clone() {
            for side in 0..2 {
                let conn = conn_id(id, side);
                if let Some((connection, _)) = self.connection(conn) {
                    if connection.ends[side].peer == index {
                        connection.ends[side].open = false;
                        self.peers[index.0].ghosts.insert(id);
                    } else {
                        self.deafen(conn);
                    }
                }
            }
            let slot = usize::try_from(id).unwrap_or(usize::MAX);
            let ended = |c: &Connection| c.ends.iter().all(|end| !end.open);
            if let Some(connection) = self.connections[slot].take_if(|connection| ended(connection)) {
                for end in &connection.ends {
                    self.peers[end.peer.0].ghosts.remove(&id);
                }
            }
        }
    }

    /// A peer's new process answers the packets of connections that it does not know.
    pub(super) fn reset_forgotten(&mut self, index: PeerIndex) {
        let stale: Vec<ConnId> = self.peers[index.0]
            .ghosts
            .iter()
            .filter_map(|id| {
                let connection = self.connections.get(usize::try_from(*id).ok()?)?.as_deref()?;
                let gone = connection
                    .ends
                    .iter()
                    .position(|end| end.peer == index && !end.open)?;
                Some(conn_id(*id, 1 - gone))
            })
            .collect();
        for conn in stale {
            self.reset_if_answered(conn);
        }
    }

    /// Brings every connection in line with who can reach whom now.
    pub(super) fn network_changed(&mut self) {
        for id in 0..self.connections.len() as u64 {
            for side in 0..2 {
                self.direction_changed(id, side);
            }
        }
    }

    /// Looks at what one side hears.
    fn direction_changed(&mut self, id: u64, side: usize) {
        let conn = conn_id(id, side);
        let Some((connection, _)) = self.connection(conn) else {
            return;
        };
        let (me, other) = (connection.ends[side].peer, connection.ends[1 - side].peer);
        let other_open = connection.ends[1 - side].open;
        if !self.network.passes(other, me) {
            return self.deafen(conn);
        }
        if !other_open {
            return self.reset_if_answered(conn);
        }
        let now = self.now;
        let Some((connection, _)) = self.connection(conn) else {
            return;
        };
        let deaf_since = connection.ends[side].deaf_since.take();
        if side == 0 && !connection.has_stream {
            return;
        }
        let held = std::mem::take(&mut connection.ends[1 - side].flow.held);
        // The probe that gets through is the next one of a series that became ever slower.
        let waited = now.since(deaf_since.unwrap_or(now)).min(KEEP_ALIVE);
        let probe = connection.ends[1 - side].flow.jitter.duration(waited);
        let mut departure = now.after(probe);
        for (carried, bytes) in held {
            let class = self.connection(conn).map_or(0, |(c, _)| c.class);
            departure = departure.after(self.network.conditions(class).transmission(bytes));
            self.fly(conn_id(id, 1 - side), carried, bytes, departure);
        }
    }

    /// Tells whether two peers have a prompt connection that both still have.
    pub(super) fn are_connected(&self, a: PeerIndex, b: PeerIndex) -> bool {
        self.peers[a.0].conns.iter().any(|id| {
            let slot = usize::try_from(*id).ok();
            let connection = slot.and_then(|slot| self.connections.get(slot)?.as_deref());
            connection.is_some_and(|c| {
                c.purpose == Purpose::Prompt
                    && c.ends
                        .iter()
                        .all(|end| end.open && (end.peer == a || end.peer == b))
            })
        })
    }

    /// Loses every connection between two peers, as a NAT that forgets them does.
    pub fn disconnect(&mut self, a: PeerIndex, b: PeerIndex) {
        for id in self.peers[a.0].conns.clone() {
            let Some((connection, _)) = self.connection(conn_id(id, 0)) else {
                continue;
            };
            if connection.ends.iter().all(|end| end.peer == a || end.peer == b) {
                let latency = self.network.conditions(self.network.class(a, b)).latency.mean();
                for side in 0..2 {
                    let conn = conn_id(id, side);
                    self.schedule(self.now.after(latency), Happening::Closed { conn, reason: None });
                }
            }
        }
    }

    /// Keeps two peers from reaching each other, or lets them again.
    pub fn partition(&mut self, a: PeerIndex, b: PeerIndex, cut: bool) {
        self.network.cut_pair(a, b, cut);
        self.network_changed();
    }
}

fn latency_ms(conditions: &Conditions) -> u64 {
    u64::try_from(conditions.latency.mean().as_millis()).unwrap_or(u64::MAX)
}
