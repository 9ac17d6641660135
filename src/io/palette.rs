//! The frames a shard's sends refer to, each by a 4-byte key.
//!
//! Law: a frame's bytes neither move nor change while the kernel may read them. The kernel's references are counted
//! apart from the owners', so that no mistake above `io/` can free memory under a send.
//!
//! A frame is *shared* (encoded once, immutable, the same `Arc` on every shard that delivers it) or *private* (the
//! replies to one connection, appended to until it leaves). Fan-out to n members is one [`Palette::share`] with n
//! owners: one count, not n.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::asan;
use super::spares::Spares;

/// Bytes encoded once for all their receivers, and carried across shards by reference.
#[derive(Debug)]
pub struct SharedFrame {
    /// The complete wire frame: header and payload, unmasked.
    plain: Box<[u8]>,
    /// The same message for receivers that read another form of it.
    forms: Vec<Form>,
    stream: Option<Stream>,
}

/// Another form of a frame, and who gets it.
#[derive(Debug)]
pub struct Form {
    /// Bit n stands for the receivers of class n. A class has one form at most.
    pub classes: u16,
    /// The complete wire frame.
    pub bytes: Box<[u8]>,
}

/// Which frame is dropped when there is no room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lossy {
    /// The oldest of the same topic that waits.
    DropOldest,
    /// The one there is no room for.
    DropNewest,
    /// The one that waits with the same key, room or not; else as [`Lossy::DropOldest`].
    LatestPerKey,
}

/// Which frames may be dropped for one another. Topics and keys are told apart by 64 bits of a hash keyed by random
/// numbers of this process: of a million keys of a topic two are taken for one with a probability of 3 in 10^8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// What is done at a bound.
    pub policy: Lossy,
    /// Hash of the topic's name.
    pub topic: u64,
    /// Hash of the topic's name and the key.
    pub key: u64,
}

impl SharedFrame {
    /// Takes a complete wire frame.
    pub fn new(plain: Vec<u8>) -> Arc<Self> {
        Self::with_forms(plain, None, Vec::new())
    }

    /// Takes a complete wire frame that may be dropped.
    pub fn lossy(plain: Vec<u8>, stream: Stream) -> Arc<Self> {
        Self::with_forms(plain, Some(stream), Vec::new())
    }

    /// Takes a complete wire frame and other forms of it.
    pub fn with_forms(plain: Vec<u8>, stream: Option<Stream>, forms: Vec<Form>) -> Arc<Self> {
        Arc::new(Self { plain: plain.into_boxed_slice(), forms, stream })
    }

    /// Which others it may be dropped for; `None` if it may not be dropped.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// The wire bytes for receivers without compression.
    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// The other forms.
    pub fn forms(&self) -> &[Form] {
        &self.forms
    }
}

/// Names a frame in a shard's [`Palette`]: its index plus one, so that an `Option` of it is four bytes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameKey(NonZeroU32);

const _: () = assert!(size_of::<Option<FrameKey>>() == 4);

impl FrameKey {
    fn at(index: u32) -> Self {
        Self(NonZeroU32::MIN.checked_add(index).expect("fewer than 2^32 - 1 frames"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
enum Body {
    Free {
        next: u32,
    },
    Shared(Arc<SharedFrame>),
    /// One of its other forms, by its place among them.
    Form(Arc<SharedFrame>, u8),
    Private(Vec<u8>),
}

#[derive(Debug)]
struct Entry {
    body: Body,
    /// Owners above `io/`: queue positions and sends that will be resumed.
    owners: u32,
    /// Sends in flight that read this frame.
    lent: u32,
    /// Published messages in it.
    messages: u32,
}

const NONE: u32 = u32::MAX;

/// The frames of one shard.
#[derive(Debug)]
pub struct Palette {
    entries: Vec<Entry>,
    free: u32,
    spares: Spares,
    live: usize,
    bytes: usize,
}

impl Default for Palette {
    fn default() -> Self {
        Self { entries: Vec::new(), free: NONE, spares: Spares::default(), live: 0, bytes: 0 }
    }
}

impl Palette {
    /// Puts a shared frame in with `owners` owners (≥ 1).
    pub fn share(&mut self, frame: Arc<SharedFrame>, owners: u32) -> FrameKey {
        debug_assert!(owners > 0);
        self.bytes += frame.plain().len();
        self.insert(Body::Shared(frame), owners, 1)
    }

    /// Puts one of a shared frame's other forms in, by its place among them, with `owners` owners (≥ 1).
    pub fn share_form(&mut self, frame: Arc<SharedFrame>, form: u8, owners: u32) -> FrameKey {
        debug_assert!(owners > 0);
        self.bytes += frame.forms[usize::from(form)].bytes.len();
        self.insert(Body::Form(frame, form), owners, 1)
    }

    /// Opens an empty private frame with one owner.
    pub fn open(&mut self) -> FrameKey {
        let buffer = self.spares.take();
        self.insert(Body::Private(buffer), 1, 0)
    }

    /// How many bytes a private frame has that may be appended to; `None` if the frame is shared, has several owners, or
    /// the kernel is reading it.
    pub fn open_len(&self, key: FrameKey) -> Option<usize> {
        match &self.entries[key.index()] {
            Entry { body: Body::Private(bytes), owners: 1, lent: 0, .. } => Some(bytes.len()),
            _ => None,
        }
    }

    /// Makes room for so many bytes more in a private frame that may be appended to, in memory that another frame had before
    /// it if there is some. Who appends more than that, or does not know how much it is, grows it all the same.
    pub fn make_room(&mut self, key: FrameKey, more: usize) {
        if let Entry { body: Body::Private(bytes), owners: 1, lent: 0, .. } = &mut self.entries[key.index()] {
            self.spares.make_room(bytes, more);
        }
    }

    /// Nothing is left of many connections: gives memory that is kept for frames back to the allocator.
    pub fn give_back(&mut self) {
        self.spares = Spares::default();
    }

    /// Appends what `write` adds to a private frame and says how many bytes that was; `None`, without a call, if the
    /// frame is shared, has several owners, or the kernel is reading it.
    pub fn append(&mut self, key: FrameKey, write: impl FnOnce(&mut Vec<u8>)) -> Option<usize> {
        let bytes = self.private_mut(key)?;
        let before = bytes.len();
        write(bytes);
        let added = bytes.len() - before;
        self.bytes += added;
        Some(added)
    }

    /// Appends the bytes of other frames to a private frame that may be appended to.
    pub fn fill(&mut self, key: FrameKey, parts: &[FrameKey]) {
        let added = parts.iter().map(|&part| self.bytes(part).len()).sum();
        self.make_room(key, added);
        let mut bytes = std::mem::take(self.private_mut(key).expect("a private frame that only its owner holds"));
        bytes.reserve(added);
        for &part in parts {
            bytes.extend_from_slice(self.bytes(part));
        }
        self.bytes += added;
        *self.private_mut(key).expect("as above") = bytes;
        self.entry_mut(key).messages += parts.iter().map(|&part| self.messages(part)).sum::<u32>();
    }

    /// Appends to a private frame that may be appended to what `write` makes of another frame's bytes.
    pub fn append_from<T>(&mut self, key: FrameKey, from: FrameKey, write: impl FnOnce(&[u8], &mut Vec<u8>) -> T) -> T {
        let mut bytes = std::mem::take(self.private_mut(key).expect("a private frame that only its owner holds"));
        let before = bytes.len();
        let outcome = write(self.bytes(from), &mut bytes);
        self.bytes += bytes.len() - before;
        *self.private_mut(key).expect("as above") = bytes;
        outcome
    }

    /// How many published messages are in a frame: a shared one is one, a private one has those it was filled with.
    pub fn messages(&self, key: FrameKey) -> u32 {
        self.entries[key.index()].messages
    }

    /// The wire bytes of a frame.
    pub fn bytes(&self, key: FrameKey) -> &[u8] {
        match &self.entries[key.index()].body {
            Body::Shared(frame) => frame.plain(),
            Body::Form(frame, form) => &frame.forms[usize::from(*form)].bytes,
            Body::Private(bytes) => bytes,
            Body::Free { .. } => panic!("frame key used after its last release"),
        }
    }

    /// Which frames it may be dropped for; `None` if it may not be dropped.
    pub fn stream(&self, key: FrameKey) -> Option<&Stream> {
        match &self.entries[key.index()].body {
            Body::Shared(frame) | Body::Form(frame, _) => frame.stream(),
            Body::Private(_) | Body::Free { .. } => None,
        }
    }

    /// Whether the frame is private to one connection (a reply, exempt from drop policies).
    pub fn is_private(&self, key: FrameKey) -> bool {
        matches!(self.entries[key.index()].body, Body::Private(_))
    }

    /// Adds `n` owners.
    pub fn retain(&mut self, key: FrameKey, n: u32) {
        self.entry_mut(key).owners += n;
    }

    /// Gives one ownership back; with the last one, and once the kernel is done, the frame is gone.
    pub fn release(&mut self, key: FrameKey) {
        self.release_many(key, 1);
    }

    /// Gives `n` ownerships back.
    pub fn release_many(&mut self, key: FrameKey, n: u32) {
        let entry = self.entry_mut(key);
        entry.owners = entry.owners.checked_sub(n).expect("a frame was released more often than it was owned");
        if entry.owners == 0 && entry.lent == 0 {
            self.free(key);
        }
    }

    /// Bytes of the frames in use: each counts once here, and shared ones also on other shards that hold them.
    pub fn live_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the memory that is kept for the next private frames.
    pub fn spare_bytes(&self) -> usize {
        self.spares.bytes()
    }

    /// Frames in use, lent ones included.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Lends the frame to a send: where its bytes are, until [`Palette::returned`]. The address stays valid and the
    /// bytes unchanged for that long: an entry with `lent > 0` is neither freed nor appended to, and a `Vec` or `Box`
    /// inside an entry that moves keeps its heap block.
    pub(in crate::io) fn lend(&mut self, key: FrameKey) -> &[u8] {
        self.entry_mut(key).lent += 1;
        self.bytes(key)
    }

    /// Tells the sanitizer that the kernel reads a private frame, which nobody looks at meanwhile. A shared one is looked at
    /// by other shards, and cannot change.
    pub(in crate::io) fn give(&self, key: FrameKey) {
        if let Body::Private(bytes) = &self.entries[key.index()].body {
            asan::give(bytes.as_ptr(), bytes.capacity());
        }
    }

    /// As [`Palette::returned`], of a frame that was [given](Palette::give).
    pub(in crate::io) fn take_back(&mut self, key: FrameKey) {
        if let Entry { body: Body::Private(bytes), lent: 1, .. } = &self.entries[key.index()] {
            asan::take_back(bytes.as_ptr(), bytes.capacity());
        }
        self.returned(key);
    }

    /// A send of this frame is over.
    pub(in crate::io) fn returned(&mut self, key: FrameKey) {
        let entry = self.entry_mut(key);
        entry.lent = entry.lent.checked_sub(1).expect("a frame came back more often than it was lent");
        if entry.owners == 0 && entry.lent == 0 {
            self.free(key);
        }
    }

    fn private_mut(&mut self, key: FrameKey) -> Option<&mut Vec<u8>> {
        match self.entry_mut(key) {
            Entry { body: Body::Private(bytes), owners: 1, lent: 0, .. } => Some(bytes),
            _ => None,
        }
    }

    fn entry_mut(&mut self, key: FrameKey) -> &mut Entry {
        let entry = &mut self.entries[key.index()];
        debug_assert!(!matches!(entry.body, Body::Free { .. }), "frame key used after its last release");
        entry
    }

    fn insert(&mut self, body: Body, owners: u32, messages: u32) -> FrameKey {
        self.live += 1;
        let entry = Entry { body, owners, lent: 0, messages };
        if self.free == NONE {
            let key = FrameKey::at(u32::try_from(self.entries.len()).expect("fewer than 2^32 - 1 frames"));
            self.entries.push(entry);
            return key;
        }
        let key = FrameKey::at(self.free);
        let slot = &mut self.entries[key.index()];
        let Body::Free { next } = slot.body else { unreachable!("the free list holds free entries only") };
        self.free = next;
        *slot = entry;
        key
    }

    fn free(&mut self, key: FrameKey) {
        self.live -= 1;
        self.bytes -= self.bytes(key).len();
        let entry = &mut self.entries[key.index()];
        let body = std::mem::replace(&mut entry.body, Body::Free { next: self.free });
        self.free = key.index() as u32;
        if let Body::Private(buffer) = body {
            self.spares.keep(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_frame_lives_until_its_last_owner_and_the_kernel_let_go() {
        let mut palette = Palette::default();
        let key = palette.share(SharedFrame::new(b"abc".to_vec()), 2);
        assert_eq!(palette.lend(key), b"abc");
        palette.release_many(key, 2);
        assert_eq!((palette.bytes(key), palette.live()), (&b"abc"[..], 1));
        palette.returned(key);
        assert_eq!(palette.live(), 0);
    }

    #[test]
    fn a_private_frame_is_appended_to_until_the_kernel_reads_it() {
        let mut palette = Palette::default();
        let key = palette.open();
        assert_eq!(palette.append(key, |out| out.extend_from_slice(b"hi")), Some(2));
        palette.lend(key);
        assert_eq!((palette.open_len(key), palette.append(key, |_| unreachable!())), (None, None));
        palette.returned(key);
        assert_eq!((palette.open_len(key), palette.live_bytes()), (Some(2), 2));
        let shared = palette.share(SharedFrame::new(b"abc".to_vec()), 1);
        palette.fill(key, &[shared, shared]);
        assert_eq!((palette.bytes(key), palette.live_bytes()), (&b"hiabcabc"[..], 11));
        palette.release(shared);
        palette.release(key);
        assert_eq!((palette.live(), palette.live_bytes()), (0, 0));
        let again = palette.open();
        assert_eq!((again, palette.bytes(again)), (key, &b""[..]), "slots and buffers are reused, empty");
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn an_ownership_is_given_back_once() {
        let mut palette = Palette::default();
        let key = palette.share(SharedFrame::new(Vec::new()), 1);
        palette.lend(key);
        palette.release(key);
        palette.release(key);
    }
}
