//! The floor on a path in virtual time: one bottleneck with a bounded queue and losses of its own, and a plain
//! additive-increase sender in the place of CUBIC.

use super::*;

const PACKET: u64 = 1_200;
const TICK: Duration = Duration::from_micros(100);
/// Losses that the sender sees are spread by this, the same in every run.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Copy)]
struct Path {
    bytes_per_second: u64,
    round_trip: Duration,
    queue_bytes: u64,
    loss_permille: u64,
}

/// Slow start, then one packet per round trip more and half after a loss.
struct Plain {
    window: u64,
    threshold: u64,
    recovery: Option<Instant>,
}

impl Plain {
    fn new() -> Self {
        Self {
            window: 10 * PACKET,
            threshold: u64::MAX,
            recovery: None,
        }
    }

    fn on_ack(&mut self, sent: Instant) {
        if self.recovery.is_some_and(|since| sent <= since) {
            return;
        }
        self.window += if self.window < self.threshold {
            PACKET
        } else {
            PACKET * PACKET / self.window
        };
    }

    fn on_loss(&mut self, now: Instant, sent: Instant) {
        if self.recovery.is_none_or(|since| sent > since) {
            self.recovery = Some(now);
            self.window = (self.window / 2).max(2 * PACKET);
            self.threshold = self.window;
        }
    }
}

struct Flow {
    plain: Plain,
    model: Option<Model>,
    in_flight: VecDeque<(u64, Instant)>,
    next: u64,
    tokens: f64,
    arrived: u64,
    lost: u64,
}

impl Flow {
    fn new(now: Instant, with_floor: bool) -> Self {
        Self {
            plain: Plain::new(),
            model: with_floor.then(|| Model::new(now, 10 * PACKET)),
            in_flight: VecDeque::new(),
            next: 0,
            tokens: 0.0,
            arrived: 0,
            lost: 0,
        }
    }

    fn window(&self) -> u64 {
        self.model
            .as_ref()
            .map_or(self.plain.window, |model| model.window(self.plain.window))
    }

    /// Whether one more packet may leave now.
    fn may_send(&self) -> bool {
        (self.in_flight.len() as u64 + 1) * PACKET <= self.window() && self.tokens >= PACKET as f64
    }

    fn on_ack(&mut self, now: Instant, number: u64, delivered_before_end: bool) {
        let Some(at) = self.in_flight.iter().position(|(other, _)| *other == number) else {
            return;
        };
        let (_, sent) = self.in_flight.remove(at).unwrap();
        self.plain.on_ack(sent);
        if let Some(model) = &mut self.model {
            model.on_ack(now, sent, PACKET, false);
        }
        self.arrived += u64::from(delivered_before_end) * PACKET;
        while let Some((lost, sent)) = self.in_flight.front().copied()
            && lost + 3 <= number
        {
            self.in_flight.pop_front();
            self.lost += PACKET;
            self.plain.on_loss(now, sent);
            if let Some(model) = &mut self.model {
                model.on_loss(now, PACKET, false);
            }
        }
    }
}

struct Outcome {
    /// Bytes per second of each flow in the second half of the run.
    rates: Vec<u64>,
    /// Lost bytes of a thousand.
    loss_permille: u64,
    /// The mean queue in the second half, in bytes.
    queue_mean: u64,
}

fn run(path: Path, with_floor: &[bool], seconds: u64) -> Outcome {
    let begin = Instant::now();
    let mut flows: Vec<Flow> = with_floor.iter().map(|floor| Flow::new(begin, *floor)).collect();
    let mut queue: VecDeque<(usize, u64)> = VecDeque::new();
    let mut acks: VecDeque<(Instant, usize, u64)> = VecDeque::new();
    let (mut random, mut budget, mut queued_sum) = (SEED, 0.0, 0u64);
    let ticks = u64::from(u32::try_from(Duration::from_secs(seconds).as_nanos() / TICK.as_nanos()).unwrap());
    for tick in 0..ticks {
        let now = begin + TICK * u32::try_from(tick).unwrap();
        let measured = tick >= ticks / 2;
        while acks.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, flow, number) = acks.pop_front().unwrap();
            flows[flow].on_ack(now, number, measured);
        }
        // Each in turn, so that none has the queue's last place for itself.
        for at in 0..flows.len() {
            let index = (at + usize::try_from(tick).unwrap()) % flows.len();
            let flow = &mut flows[index];
            let per_tick = flow.window() as f64 * 1.25 * TICK.as_secs_f64() / path.round_trip.as_secs_f64();
            flow.tokens = (flow.tokens + per_tick).min(per_tick + 10.0 * PACKET as f64);
            while flow.may_send() {
                flow.tokens -= PACKET as f64;
                flow.in_flight.push_back((flow.next, now));
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let fits = (queue.len() as u64 + 1) * PACKET <= path.queue_bytes;
                if fits && random % 1_000 >= path.loss_permille {
                    queue.push_back((index, flow.next));
                }
                flow.next += 1;
            }
        }
        budget += path.bytes_per_second as f64 * TICK.as_secs_f64();
        while budget >= PACKET as f64
            && let Some((flow, number)) = queue.pop_front()
        {
            budget -= PACKET as f64;
            acks.push_back((now + path.round_trip, flow, number));
        }
        budget = budget.min(2.0 * PACKET as f64);
        queued_sum += u64::from(measured) * queue.len() as u64 * PACKET;
    }
    let half = seconds - seconds / 2;
    let (sent, lost) = flows.iter().fold((0, 0), |(sent, lost), flow| {
        (sent + flow.next * PACKET, lost + flow.lost)
    });
    Outcome {
        rates: flows.iter().map(|flow| flow.arrived / half).collect(),
        loss_permille: lost * 1_000 / sent,
        queue_mean: queued_sum / (ticks / 2),
    }
}

const LONG_AND_LOSSY: Path = Path {
    bytes_per_second: 12_500_000,
    round_trip: Duration::from_millis(100),
    queue_bytes: 625_000,
    loss_permille: 10,
};

#[test]
fn a_long_path_with_losses_of_its_own_is_filled() {
    let plain = run(LONG_AND_LOSSY, &[false], 20);
    let floored = run(LONG_AND_LOSSY, &[true], 20);
    let full = LONG_AND_LOSSY.bytes_per_second;
    assert!(plain.rates[0] < full / 20, "{}", plain.rates[0]);
    assert!(floored.rates[0] > full * 8 / 10, "{}", floored.rates[0]);
    assert!(floored.loss_permille < 20, "{}", floored.loss_permille);
    assert!(floored.queue_mean < full / 50, "{}", floored.queue_mean);
}

#[test]
fn a_path_with_little_queue_is_filled_without_many_losses() {
    let path = Path {
        queue_bytes: 60_000,
        loss_permille: 0,
        ..LONG_AND_LOSSY
    };
    let outcome = run(path, &[true], 20);
    assert!(
        outcome.rates[0] > path.bytes_per_second * 8 / 10,
        "{}",
        outcome.rates[0]
    );
    assert!(outcome.loss_permille < 30, "{}", outcome.loss_permille);
}

#[test]
fn a_plain_flow_on_the_same_path_keeps_a_share() {
    let path = Path {
        loss_permille: 0,
        queue_bytes: 1_250_000,
        ..LONG_AND_LOSSY
    };
    let outcome = run(path, &[true, false], 60);
    let full = path.bytes_per_second;
    assert!(
        outcome.rates.iter().sum::<u64>() > full * 8 / 10,
        "{:?}",
        outcome.rates
    );
    assert!(outcome.rates[1] > full / 5, "{:?}", outcome.rates);
}

#[test]
fn two_flows_with_a_floor_share_a_path() {
    let path = Path {
        loss_permille: 5,
        ..LONG_AND_LOSSY
    };
    let outcome = run(path, &[true, true], 60);
    let full = path.bytes_per_second;
    assert!(
        outcome.rates.iter().all(|rate| *rate > full / 5),
        "{:?}",
        outcome.rates
    );
}

#[test]
fn a_path_that_loses_too_much_has_its_rate_cut_and_silence_forgets_it() {
    let begin = Instant::now();
    let mut model = Model::new(begin, 12_000);
    let mut at = begin;
    let mut round = |model: &mut Model, acked: u64, lost: u64| {
        let sent = at;
        at += Duration::from_millis(100);
        if lost > 0 {
            model.on_loss(at, lost, false);
        }
        model.on_ack(at, sent, acked, false);
    };
    for _ in 0..20 {
        round(&mut model, 1_000_000, 0);
    }
    let before = model.window(0);
    assert!((900_000..1_500_000).contains(&before), "{before}");
    for _ in 0..8 {
        round(&mut model, 500_000, 500_000);
    }
    let after = model.window(0);
    assert!(after < before * 6 / 10, "{after} of {before}");
    model.on_loss(at, 1_200, true);
    assert_eq!(model.window(24_000), 24_000);
}

#[test]
fn marks_of_a_router_cut_the_rate_as_losses_do() {
    let begin = Instant::now();
    let mut model = Model::new(begin, 12_000);
    let mut at = begin;
    let mut round = |model: &mut Model, marked: bool| {
        let sent = at;
        at += Duration::from_millis(100);
        if marked {
            model.on_loss(at, 0, false);
        }
        model.on_ack(at, sent, 1_000_000, false);
    };
    for _ in 0..20 {
        round(&mut model, false);
    }
    // Between two probes.
    while !matches!(model.phase, Phase::Hold { rounds: 2 }) {
        round(&mut model, false);
    }
    let before = model.window(0);
    round(&mut model, true);
    let after = model.window(0);
    assert!(after < before * 9 / 10, "{after} of {before}");
}
