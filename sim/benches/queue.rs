//! The calendar queue beside a binary heap, with a million entries that wait.
//!
//! The hold model: take the next entry, schedule another one at a distance that looks like a mesh's: frames on their
//! way (exponential), timers of one second, timers far away. The two queues take turns, so that what else the
//! machine does hits both; medians are printed with the least and the most. Beside them stands how many events a second
//! the protocol itself works off, while a mesh of a thousand peers comes together: what the queue's speed is worth.
//!
//!     cargo bench -p hyperfabric-sim --bench queue
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use hyperfabric_sim::conditions::Conditions;
use hyperfabric_sim::queue::Queue;
use hyperfabric_sim::scale::{Scale, ScaleConfig};
use hyperfabric_sim::topology::Shape;
use hyperfabric_sim::world::WorldOptions;

const PENDING: u32 = 1_000_000;
const HOLDS: u32 = 1_000_000;
const ROUNDS: usize = 7;
const PEERS: usize = 1_000;
/// What the calendar is kept for.
const TARGET: f64 = 4.0;

/// A small generator (SplitMix64), so that drawing costs less than what is measured.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Half frames (40 ms on average), three in ten timers of a second, the others up to twenty minutes.
    fn distance(&mut self) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        match self.next() % 10 {
            0..=4 => (-(1.0 - unit).ln() * 40e6) as u64,
            5..=7 => 1_000_000_000,
            _ => (unit * 1.2e12) as u64,
        }
    }
}

/// Returns nanoseconds for each hold, and a sum by which the two queues can be compared.
fn hold(push: &mut dyn FnMut(u64, u32), pop: &mut dyn FnMut() -> (u64, u32), draw: &mut Draw) -> (f64, u64) {
    let begin = Instant::now();
    let mut sum = 0u64;
    for _ in 0..HOLDS {
        let (time, item) = pop();
        sum = sum.wrapping_mul(31).wrapping_add(time ^ u64::from(item));
        push(time + draw.distance(), item);
    }
    (
        begin.elapsed().as_nanos() as f64 / f64::from(HOLDS),
        black_box(sum),
    )
}

fn median(mut times: Vec<f64>, name: &str) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times[times.len() / 2];
    let (least, most) = (times[0], times[times.len() - 1]);
    println!(
        "{name:<12} {middle:7.1} ns a hold ({least:.1} to {most:.1}), {:.2} M/s",
        1e3 / middle
    );
    middle
}

/// Returns how many events a second the protocol works off, the queue included.
fn protocol() -> f64 {
    let config = ScaleConfig {
        peers: PEERS,
        seed: 1,
        shape: Shape::Full,
        link: Conditions::default(),
        join_within: Duration::from_secs(10),
        tickets: true,
        limit: Duration::from_secs(600),
    };
    let options = WorldOptions {
        bytes: false,
        log: false,
        discovery: true,
        share: true,
    };
    let begin = Instant::now();
    let mut scale = Scale::new(config, options);
    assert!(scale.run(), "the mesh did not come together");
    scale.report().events as f64 / begin.elapsed().as_secs_f64()
}

fn main() -> std::process::ExitCode {
    let mut queue = Queue::new();
    let mut heap = BinaryHeap::new();
    let mut draw = Draw(1);
    // The heap breaks ties as the queue does: by a sequence.
    let mut sequence = 0u64;
    for item in 0..PENDING {
        let time = draw.distance();
        queue.push(time, item);
        heap.push(Reverse((time, sequence, item)));
        sequence += 1;
    }
    let (mut calendar, mut binary) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let seed = round as u64;
        let queue = std::cell::RefCell::new(&mut queue);
        let (a, served) = hold(
            &mut |time, item| queue.borrow_mut().push(time, item),
            &mut || {
                queue
                    .borrow_mut()
                    .pop()
                    .map_or((0, 0), |entry| (entry.time, entry.item))
            },
            &mut Draw(seed),
        );
        let heap = std::cell::RefCell::new(&mut heap);
        let (b, expected) = hold(
            &mut |time, item| {
                sequence += 1;
                heap.borrow_mut().push(Reverse((time, sequence, item)));
            },
            &mut || {
                heap.borrow_mut()
                    .pop()
                    .map_or((0, 0), |Reverse((time, _, item))| (time, item))
            },
            &mut Draw(seed),
        );
        assert_eq!(served, expected, "the two queues disagree");
        // The first round warms both up.
        if round > 0 {
            calendar.push(a);
            binary.push(b);
        }
    }
    println!("{PENDING} pending, {ROUNDS} rounds of {HOLDS} holds, in turns");
    let calendar = median(calendar, "calendar");
    let ratio = median(binary, "BinaryHeap") / calendar;
    println!("the calendar is {ratio:.1} times as fast (kept for: {TARGET})");
    let events = protocol();
    let share = events * calendar / 1e9 * 100.0;
    println!(
        "the protocol works off {events:.0} events a second ({PEERS} peers join): {share:.2} % of it is the calendar"
    );
    if ratio >= TARGET {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
