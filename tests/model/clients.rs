//! The map of clients: limits hold, and everyone evicted is named once.

use std::sync::Arc;

use loom::thread;
use tidewheel::app::Clients;
use tidewheel::app::clients::Place;
use tidewheel::config::ClientLimitPolicy::{self, EvictOldest, Reject};

use crate::{A, B, C, conn, explore};

/// Admits a newcomer of a client that may have so many.
fn admit(clients: &Clients, most: u32, policy: ClientLimitPolicy, place: Place) -> Outcome {
    clients.admit("ann", Some(most), policy, place).map_err(drop)
}

type Outcome = Result<Vec<Place>, ()>;

/// Two newcomers on two shards, while a third connection of the same client ends by itself: whoever was there ends in
/// one of three ways, and nobody in two.
#[test]
fn everyone_stays_or_is_evicted_once() {
    explore("everyone_stays_or_is_evicted_once", 4, || {
        let clients = Arc::new(Clients::default());
        let [old, older] = [(A, conn(0)), (A, conn(1))];
        for place in [old, older] {
            admit(&clients, 2, EvictOldest, place).unwrap();
        }
        let newcomer = |shard| {
            let clients = clients.clone();
            thread::spawn(move || admit(&clients, 2, EvictOldest, (shard, conn(7))).unwrap())
        };
        let newcomers = [B, C].map(newcomer);
        clients.release("ann", old);
        let mut evicted: Vec<_> = newcomers.into_iter().flat_map(|one| one.join().unwrap()).collect();
        evicted.sort_by_key(|(_, conn)| conn.slot);
        let stay = clients.places("ann");
        assert_eq!(stay.len(), 2, "as many as it may have: {stay:?}");
        assert!(stay.contains(&(B, conn(7))) && stay.contains(&(C, conn(7))), "newcomers stay: {stay:?}");
        assert!(evicted == [older] || evicted == [old, older], "once each: {evicted:?}");
    });
}

/// Of newcomers that race for the last place one gets it, if those who are there may stay.
#[test]
fn the_last_place_is_given_once() {
    explore("the_last_place_is_given_once", 4, || {
        let clients = Arc::new(Clients::default());
        let other = {
            let clients = clients.clone();
            thread::spawn(move || admit(&clients, 1, Reject, (B, conn(0))).is_ok())
        };
        let mine = admit(&clients, 1, Reject, (A, conn(0))).is_ok();
        assert!(mine ^ other.join().unwrap());
        assert_eq!(clients.places("ann").len(), 1);
    });
}

/// A shard that breaks takes its own along; a newcomer elsewhere stays, and evicts nobody who is not there.
#[test]
fn a_broken_shard_takes_its_own_along() {
    explore("a_broken_shard_takes_its_own_along", 4, || {
        let clients = Arc::new(Clients::default());
        admit(&clients, 1, EvictOldest, (A, conn(0))).unwrap();
        let broken = {
            let clients = clients.clone();
            thread::spawn(move || clients.release_all(A))
        };
        let evicted = admit(&clients, 1, EvictOldest, (B, conn(0))).unwrap();
        broken.join().unwrap();
        assert!(evicted.iter().all(|&place| place == (A, conn(0))) && evicted.len() <= 1);
        assert_eq!(clients.places("ann"), [(B, conn(0))]);
        clients.release("ann", (B, conn(0)));
        assert!(clients.is_empty());
    });
}
