//! What can go wrong in a simulated world, and how often.
//! Law: every fault is one the Linux kernel or a network shows; none breaks the contract of [`crate::io::Io`].

use super::dice::Dice;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $swarm_max:literal,)+) => {
        /// How probable each fault is, at each opportunity for it (0.0 never, 1.0 always). `default()` has none.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Faults { $($(#[$doc])* pub $name: f64,)+ }

        impl Faults {
            /// Every fault at once, each as probable as a run can bear and still get somewhere.
            pub fn all() -> Self {
                Self { $($name: $swarm_max,)+ }
            }

            /// About half of the faults, each with a probability of its own: mistakes that need one fault to be
            /// frequent and another to be absent are not found with all of them on.
            pub fn swarm(dice: &mut Dice) -> Self {
                Self { $($name: if dice.coin() { 0.0 } else { $swarm_max * (1 + dice.below(8)) as f64 / 8.0 },)+ }
            }
        }
    };
}

faults! {
    /// A receive completion carries fewer bytes than were there.
    short_read: 0.5,
    /// A send ends before all its bytes were taken.
    short_send: 0.3,
    /// An operation that could make progress, or whose effect has taken place, does not complete yet.
    delay: 0.5,
    /// Completions of different connections come in another order than their slots have.
    reorder: 1.0,
    /// A receive finds no buffer though there are some (ENOBUFS).
    starve: 0.1,
    /// A receive must be armed again after the bytes it gave (F_MORE clear).
    disarm: 0.2,
    /// An accept fails (EMFILE, ENFILE) though the table has room.
    accept_fails: 0.1,
    /// The network breaks a connection, per connection and step.
    reset: 0.002,
    /// A peer stops reading for a while, per connection and step.
    stall: 0.01,
    /// A send finds its connection broken.
    send_fails: 0.005,
    /// After a close or a pause the receive still gives bytes that had arrived.
    late_cancel: 0.5,
    /// The monotonic clock jumps ahead by up to two minutes (a suspended machine), per step.
    clock_jump: 0.002,
    /// The shard's thread stands still for some time in the middle of a turn: a look at the clock finds it later by up to
    /// two milliseconds.
    slow: 0.2,
    /// Unix time jumps by up to an hour either way, per step.
    unix_jump: 0.005,
    /// The doorbell sounds though nobody rang.
    spurious_ring: 0.05,
}
