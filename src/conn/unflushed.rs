//! Connections that have something to flush, in lines.
//! Law: a connection is in each line at most once, as its marks say; an entry whose connection has gone finds no mark, and is
//! passed over. So there are at most as many entries in a line as connections, and those that went while they stood in it.

use std::collections::VecDeque;

use super::Conn;

/// Where a connection waits for its flush. Nobody waits for those in the lines behind its own; a line behind has its part of
/// every turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushLine {
    /// It is answered, or gets a message that only few get.
    Own,
    /// It gets a message that many get.
    Crowd,
    /// It is told its last, or is to be closed.
    Leaving,
}

const LINES: usize = 3;

/// In which lines a connection stands: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushMarks(u8);

impl FlushMarks {
    fn has(self, line: FlushLine) -> bool {
        self.0 & 1 << line as u8 != 0
    }

    fn set(&mut self, line: FlushLine) {
        self.0 |= 1 << line as u8;
    }

    /// Takes the mark of a line away; `false` if there was none.
    #[inline]
    pub fn take(&mut self, line: FlushLine) -> bool {
        let has = self.has(line);
        self.0 &= !(1 << line as u8);
        has
    }
}

/// The lines.
#[derive(Debug, Default)]
pub struct Unflushed([VecDeque<u32>; LINES]);

impl Unflushed {
    /// Puts a connection at the end of a line, unless it stands in it. Who stands in the first line need not stand in the
    /// crowd's.
    #[inline]
    pub fn add(&mut self, slot: u32, conn: &mut Conn, line: FlushLine) {
        let marks = &mut conn.unflushed;
        let stands = marks.has(line) || line == FlushLine::Crowd && marks.has(FlushLine::Own);
        if !stands {
            marks.set(line);
            self.0[line as usize].push_back(slot);
        }
    }

    /// Takes out the slot of whoever came first into a line. Its connection may have gone since: then whoever has the slot now
    /// has no mark ([`FlushMarks::take`]), or one of an entry of its own behind.
    #[inline]
    pub fn next(&mut self, line: FlushLine) -> Option<u32> {
        self.0[line as usize].pop_front()
    }

    /// Entries in a line.
    pub fn len(&self, line: FlushLine) -> usize {
        self.0[line as usize].len()
    }

    /// Entries in all lines.
    pub fn total(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    /// Whether nobody has anything to flush.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{ConnPool, Greeting};

    #[test]
    fn each_stands_in_a_line_once_and_who_has_gone_is_passed_over() {
        let (mut conns, mut unflushed) = (ConnPool::new(4), Unflushed::default());
        let mut open = || conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        let [ann, ben] = [open(), open()];
        let lines = [FlushLine::Crowd, FlushLine::Own, FlushLine::Leaving, FlushLine::Own, FlushLine::Crowd];
        for line in lines {
            for key in [ann, ben] {
                unflushed.add(key.slot, conns.get_mut(key).unwrap(), line);
            }
        }
        assert_eq!((unflushed.total(), unflushed.len(FlushLine::Own)), (6, 2));
        // Ann has gone, and another has her slot.
        conns.remove(ann);
        let eve = conns.insert_with(|_| Conn::new(0, Greeting::default())).unwrap();
        assert_eq!(eve.slot, ann.slot);
        unflushed.add(eve.slot, conns.get_mut(eve).unwrap(), FlushLine::Own);
        unflushed.add(eve.slot, conns.get_mut(eve).unwrap(), FlushLine::Crowd);
        assert_eq!(unflushed.len(FlushLine::Crowd), 2, "who stands in the first line need not stand in the crowd's");
        let mut next = |line| {
            let slot = unflushed.next(line)?;
            Some(conns.slot_mut(slot)?.unflushed.take(line).then_some(slot))
        };
        let own: Vec<_> = std::iter::from_fn(|| next(FlushLine::Own)).collect();
        assert_eq!(own, [Some(eve.slot), Some(ben.slot), None], "hers is taken at the place of her slot's old entry");
        assert_eq!((next(FlushLine::Crowd), next(FlushLine::Crowd)), (Some(None), Some(Some(ben.slot))));
        assert_eq!((next(FlushLine::Leaving), next(FlushLine::Leaving)), (Some(None), Some(Some(ben.slot))));
        assert!(unflushed.is_empty());
    }
}
