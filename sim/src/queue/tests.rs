//! The calendar against a binary heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

/// What a queue does in the properties below: schedule at a distance from the last time served, or serve.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push(i64),
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    let near = (0..20i64).prop_map(Step::Push);
    let timers = (0..3_000_000_000i64).prop_map(Step::Push);
    let same = Just(Step::Push(1_000_000_000));
    let past = (-5_000_000..0i64).prop_map(Step::Push);
    let far = (0..i64::MAX).prop_map(Step::Push);
    prop_oneof![3 => near, 3 => timers, 2 => same, 1 => past, 1 => far, 6 => Just(Step::Pop)]
}

fn agree(steps: impl Iterator<Item = Step>) {
    let (mut queue, mut heap) = (Queue::new(), BinaryHeap::new());
    let mut now = 0u64;
    let mut sequence = 0u32;
    let pop = |queue: &mut Queue, heap: &mut BinaryHeap<Reverse<(u64, u32)>>| {
        let expected = heap.pop().map(|Reverse((time, item))| Entry { time, item });
        assert_eq!(queue.peek(), expected);
        assert_eq!(queue.pop(), expected);
        assert_eq!(queue.len(), heap.len());
        expected
    };
    for step in steps {
        match step {
            Step::Push(distance) => {
                let time = now.saturating_add_signed(distance);
                queue.push(time, sequence);
                heap.push(Reverse((time, sequence)));
                sequence += 1;
            }
            Step::Pop => now = pop(&mut queue, &mut heap).map_or(now, |entry| entry.time),
        }
    }
    while pop(&mut queue, &mut heap).is_some() {}
    assert!(queue.is_empty());
}

proptest! {
    #[test]
    fn it_serves_any_sequence_in_the_order_of_a_heap(steps in prop::collection::vec(step(), 0..4000)) {
        agree(steps.into_iter());
    }
}

#[test]
fn entries_of_one_time_leave_in_the_order_in_which_they_came() {
    agree((0..5000).map(|n| Step::Push(if n % 7 == 0 { 70_000 } else { 65_536 })));
}

#[test]
fn a_crowd_that_arrives_in_the_day_in_service_is_split() {
    let first = [Step::Push(1 << 40), Step::Push((1 << 40) + (1 << 39)), Step::Pop];
    let crowd = (0..20_000).map(|n| Step::Push((n * 7_919) % (1 << 38)));
    agree(first.into_iter().chain(crowd));
}

#[test]
fn the_end_of_time_is_a_time() {
    let mut queue = Queue::new();
    queue.push(u64::MAX, 1);
    queue.push(u64::MAX, 2);
    queue.push(0, 3);
    let served: Vec<u32> = std::iter::from_fn(|| queue.pop())
        .map(|entry| entry.item)
        .collect();
    assert_eq!(served, [3, 1, 2]);
    queue.push(u64::MAX - 1, 4);
    queue.push(u64::MAX, 5);
    assert_eq!(queue.pop().map(|entry| entry.item), Some(4));
    assert_eq!(queue.pop().map(|entry| entry.item), Some(5));
}
