//! Two connection machines, and a network that delays, loses and reorders whatever it can between them.

use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// One connection of the network; its two ends are side 0 and side 1.
struct Wire {
    dialler: usize,
    /// Whether the side has been told of it.
    told: [bool; 2],
    /// Whether the side still has it.
    open: [bool; 2],
    /// Frames on their way to the side.
    frames: [VecDeque<Hello>; 2],
    /// The end, on its way to the side.
    end: [Option<Option<CloseReason>>; 2],
    /// Whether it carries anything.
    alive: bool,
}

struct World {
    now: Now,
    sides: [Neighbors; 2],
    incarnations: u64,
    wires: Vec<Wire>,
    dialling: [bool; 2],
    up: [Option<ConnId>; 2],
}

fn id(wire: usize, side: usize) -> ConnId {
    ConnId((wire * 2 + side) as u64)
}

fn side_peer(side: usize) -> PeerId {
    peer(side as u8 + 1)
}

impl World {
    fn new() -> Self {
        let make = |side: usize| Neighbors::new(config(side as u8 + 1, 1), random(side as u8));
        let mut world = Self {
            now: at(0),
            sides: [make(0), make(1)],
            incarnations: 1,
            wires: Vec::new(),
            dialling: [false; 2],
            up: [None; 2],
        };
        world.learn(0);
        world.learn(1);
        world
    }

    fn input(&mut self, side: usize, input: Input) {
        self.sides[side].handle_input(self.now, input);
        self.drain(side);
    }

    fn learn(&mut self, side: usize) {
        let input = Input::Learned {
            peer: side_peer(1 - side),
            addresses: addresses(1),
            bootstrap: false,
        };
        self.input(side, input);
    }

    fn drain(&mut self, side: usize) {
        while let Some(transmit) = self.sides[side].poll_transmit() {
            match transmit {
                Transmit::Dial { .. } => self.dialling[side] = true,
                Transmit::Frame {
                    conn,
                    frame: Frame::Hello(hello),
                } => {
                    let wire = &mut self.wires[conn.0 as usize / 2];
                    if wire.alive && wire.open[side] {
                        wire.frames[1 - side].push_back(hello);
                    }
                }
                Transmit::Frame { .. } => panic!("only Hello comes from here"),
                Transmit::Close { conn, reason } => {
                    let wire = &mut self.wires[conn.0 as usize / 2];
                    wire.open[side] = false;
                    wire.alive = false;
                    wire.end[1 - side].get_or_insert(Some(reason));
                }
            }
        }
        while let Some(event) = self.sides[side].poll_event() {
            match event {
                Event::Up { conn, .. } => assert_eq!(self.up[side].replace(conn), None, "up twice"),
                Event::Moved { conn, .. } => assert_ne!(self.up[side].replace(conn).unwrap(), conn),
                Event::Down { .. } => assert!(self.up[side].take().is_some(), "down twice"),
                Event::Unreachable { .. } => {}
            }
        }
        assert_eq!(self.sides[side].connection(side_peer(1 - side)), self.up[side]);
    }

    /// A handshake succeeds at the dialler; the other side hears of it later.
    fn connect(&mut self, side: usize) {
        let mut told = [false; 2];
        told[side] = true;
        let wire = Wire {
            dialler: side,
            told,
            open: told,
            frames: Default::default(),
            end: [None; 2],
            alive: true,
        };
        self.wires.push(wire);
        let conn = id(self.wires.len() - 1, side);
        self.input(
            side,
            Input::Connected {
                conn,
                peer: side_peer(1 - side),
                dialled: true,
                address: None,
            },
        );
    }

    fn answer_dial(&mut self, side: usize, succeed: bool) -> bool {
        if !core::mem::take(&mut self.dialling[side]) {
            return false;
        }
        if succeed {
            self.connect(side);
        } else {
            self.input(
                side,
                Input::DialFailed {
                    peer: side_peer(1 - side),
                    permanent: false,
                },
            );
        }
        true
    }

    /// Delivers whatever comes next on a wire to a side.
    fn deliver(&mut self, wire: usize, side: usize, hurry: bool) -> bool {
        let conn = id(wire, side);
        let link = &mut self.wires[wire];
        if link.end[side].is_some() && (hurry || link.frames[side].is_empty() || !link.told[side]) {
            // A close overtakes what was sent before it.
            let reason = link.end[side].take().unwrap();
            link.frames[side].clear();
            let was_open = core::mem::replace(&mut link.open[side], false);
            link.told[side] = true;
            if was_open {
                self.input(side, Input::Disconnected { conn, reason });
            }
            return true;
        }
        if !link.told[side] {
            link.told[side] = true;
            link.open[side] = link.alive;
            if link.alive {
                let connected = Input::Connected {
                    conn,
                    peer: side_peer(1 - side),
                    dialled: false,
                    address: None,
                };
                self.input(side, connected);
            }
            return true;
        }
        if let Some(hello) = link.frames[side].pop_front() {
            if link.open[side] {
                self.input(side, Input::Hello { conn, hello });
            }
            return true;
        }
        false
    }

    /// The network loses a connection; each side notices in its own time.
    fn break_wire(&mut self, wire: usize) {
        let link = &mut self.wires[wire];
        link.alive = false;
        for side in 0..2 {
            if link.open[side] {
                link.end[side].get_or_insert(None);
            }
        }
    }

    fn restart(&mut self, side: usize) {
        self.incarnations += 1;
        for wire in 0..self.wires.len() {
            self.break_wire(wire);
            let link = &mut self.wires[wire];
            link.open[side] = false;
            link.told[side] = true;
            link.end[side] = None;
            link.frames[side].clear();
        }
        self.dialling[side] = false;
        self.up[side] = None;
        let config = config(side as u8 + 1, self.incarnations);
        self.sides[side] = Neighbors::new(config, random(self.incarnations as u8));
        self.learn(side);
    }

    fn advance(&mut self, millis: u64) {
        self.now.mono = self.now.mono.after(Duration::from_millis(millis));
        for side in 0..2 {
            self.sides[side].handle_timeout(self.now);
            self.drain(side);
        }
    }

    fn act(&mut self, (what, which, how): (u8, u8, u8)) {
        let side = usize::from(how % 2);
        let wire = if self.wires.is_empty() {
            None
        } else {
            Some(usize::from(which) % self.wires.len())
        };
        match (what % 16, wire) {
            (0..=2, _) => drop(self.answer_dial(side, how < 200)),
            (3, _) => self.connect(side),
            (4..=10, Some(wire)) => drop(self.deliver(wire, side, how > 127)),
            (11, Some(wire)) => self.break_wire(wire),
            (12, _) if how > 127 => self.restart(side),
            _ => self.advance(u64::from(which) * 10),
        }
    }

    /// Lets the network deliver everything, and time pass, until nothing new can happen.
    fn come_to_rest(&mut self) {
        let end = self.now.mono.after(Duration::from_secs(120));
        while self.now.mono < end {
            let mut moved = false;
            for side in 0..2 {
                moved |= self.answer_dial(side, true);
                for wire in 0..self.wires.len() {
                    moved |= self.deliver(wire, side, false);
                }
            }
            if !moved {
                self.advance(50);
            }
        }
    }

    fn check(&self) {
        let open: Vec<usize> = (0..self.wires.len())
            .filter(|w| self.wires[*w].open != [false; 2])
            .collect();
        assert_eq!(open.len(), 1, "one connection survives");
        let wire = &self.wires[open[0]];
        assert!(wire.alive && wire.open == [true; 2], "and works at both ends");
        for side in 0..2 {
            assert_eq!(self.up[side], Some(id(open[0], side)));
            assert_eq!(
                self.sides[side].peer_of(id(open[0], side)),
                Some(side_peer(1 - side))
            );
        }
    }
}

#[test]
fn of_two_simultaneous_dials_the_one_of_the_smaller_id_survives() {
    // [CONN-4] Every order in which accept and Hello of the two connections can arrive.
    for order in 0..256 {
        let mut world = World::new();
        for side in 0..2 {
            assert!(world.answer_dial(side, true));
        }
        for step in 0..8 {
            let (wire, side) = ((order >> step) & 1, (order >> ((step + 3) % 8)) & 1);
            world.deliver(wire, side, false);
        }
        world.come_to_rest();
        world.check();
        assert_eq!(world.wires.len(), 2, "nobody had to dial again");
        assert_eq!(
            world
                .wires
                .iter()
                .position(|wire| wire.open[0])
                .map(|w| world.wires[w].dialler),
            Some(0)
        );
    }
}

proptest! {
    #[test]
    fn whatever_happened_one_connection_survives_at_both_ends(
        actions in prop::collection::vec(any::<(u8, u8, u8)>(), 0..120)
    ) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.come_to_rest();
        world.check();
    }
}
