//! What a key can be: a word, none, a list, a section; how each is read, checked, written and described.
//! Law: a type says here all that the file, the environment, `tidewheel config` and a reload need to know of it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::Config;
use super::problem::{Place, Problem, nearest};
use super::tree::{Content, Tree};

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path, such as `websocket.pong_timeout`. `topics[].pattern` is a key of each entry of a list.
    pub path: String,
    /// What may be written.
    pub form: String,
    /// The default, as it is written.
    pub default: String,
    /// The least and the most.
    pub range: Option<(String, String)>,
    /// When a change of it counts.
    pub apply: Apply,
    /// What it means.
    pub meaning: String,
}

/// When a change of a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// With a reload.
    Live,
    /// With the next start.
    Restart,
    /// It is a section, whose keys say it each for itself.
    Section,
}

/// What a reload changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The keys that it applies.
    pub applied: Vec<String>,
    /// The keys that were changed and stay as they are until a restart.
    pub restart: Vec<String>,
}

/// A value as it is written. Secrets are masked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Written {
    Word(Value),
    List(Vec<Written>),
    Section(Vec<(&'static str, Written)>),
}

/// What is found out while a configuration is read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
    /// Where each key was written last.
    pub(super) places: BTreeMap<String, Place>,
}

/// A node of the definition.
pub(super) trait Node: Clone + PartialEq {
    /// Reads what is written at `path` over what `was` there. `None`: it is no value, which has been told.
    fn read(was: Option<&Self>, path: &str, tree: &Tree, reader: &mut Reader) -> Option<Self>;

    /// Tells every value that is out of its range.
    fn check(&self, _path: &str, _wrong: &mut dyn FnMut(String, String)) {}

    /// Takes over from what is `running` whatever only a restart changes, and tells what differs.
    fn settle(&mut self, running: &Self, path: &str, apply: Apply, changes: &mut Changes) {
        if self == running {
            return;
        }
        if apply == Apply::Restart {
            changes.restart.push(path.to_owned());
            *self = running.clone();
        } else {
            changes.applied.push(path.to_owned());
        }
    }

    fn written(&self) -> Written;

    /// Adds itself, with what is known of it so far, and the keys below it.
    fn describe(own: Key, keys: &mut Vec<Key>);

    /// The entries of a list that was written in one word, in a variable for instance.
    fn entries(text: &str, place: &Place) -> Vec<Tree> {
        match text.trim() {
            list if list.starts_with('[') && list.ends_with(']') => Tree::list(list, place),
            list => list.split(',').map(|one| Tree::word(place.clone(), one.trim())).collect(),
        }
    }
}

/// A value that is one word.
pub(super) trait Word: Clone + PartialEq {
    /// What may be written, for people.
    fn form() -> String;

    /// # Errors
    /// What to write instead.
    fn parse(text: &str) -> Result<Self, String>;

    fn shown(&self) -> Value;
}

/// A value that lies between two.
pub(super) trait Ranged {
    type Bound: PartialOrd;

    /// What has to lie between; `None` if nothing has to.
    fn bound(&self) -> Option<Self::Bound>;

    fn show(bound: &Self::Bound) -> String;

    fn check(&self, path: &str, range: &RangeInclusive<Self::Bound>, wrong: &mut dyn FnMut(String, String)) {
        if let Some(value) = self.bound()
            && !range.contains(&value)
        {
            let (value, least, most) = (Self::show(&value), Self::show(range.start()), Self::show(range.end()));
            wrong(path.to_owned(), format!("{value} is out of range; write {least} to {most}"));
        }
    }
}

impl<T: Ranged> Ranged for Option<T> {
    type Bound = T::Bound;

    fn bound(&self) -> Option<T::Bound> {
        self.as_ref()?.bound()
    }

    fn show(bound: &T::Bound) -> String {
        T::show(bound)
    }
}

impl Reader {
    pub(super) fn wrong(&mut self, place: &Place, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { place: place.clone(), key: path.to_owned(), message: message.into() });
    }

    /// The entries of a section, without those that are wrong.
    pub(super) fn entries<'a>(
        &mut self,
        path: &str,
        tree: &'a Tree,
        keys: &[&str],
    ) -> Vec<(&'a str, &'a Place, &'a Tree)> {
        let Content::Section(all) = &tree.content else {
            if !tree.is_null() {
                let message = format!("keys are expected here, each as `key: value`: {}", keys.join(", "));
                self.wrong(&tree.place, path, message);
            }
            return Vec::new();
        };
        let mut entries: Vec<(&str, &Place, &Tree)> = Vec::new();
        for (name, place, value) in all {
            match name.as_deref() {
                None => self.wrong(place, path, "this is no key; write `key: value`"),
                Some(name) if entries.iter().any(|(other, ..)| *other == name) => {
                    self.wrong(place, &join(path, &printable(name)), "is there twice; remove one");
                }
                Some(name) => entries.push((name, place, value)),
            }
        }
        entries
    }

    pub(super) fn unknown(&mut self, path: &str, name: &str, place: &Place) {
        let whole = join(path, &printable(name));
        let known: Vec<&str> = Config::reference().iter().map(|key| &*key.path).collect();
        let message = match nearest(&plain(&join(path, name)), &known) {
            Some(known) => format!("no such key; did you mean `{known}`?"),
            None => "no such key; remove it".to_owned(),
        };
        self.wrong(place, &whole, message);
    }
}

/// The path of `key` below `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A path without the numbers of list entries, as the definition has it.
pub(super) fn plain(path: &str) -> String {
    path.split('[')
        .enumerate()
        .map(|(index, part)| match part.split_once(']') {
            Some((_, rest)) if index > 0 => format!("[]{rest}"),
            _ => part.to_owned(),
        })
        .collect()
}

/// A name that is no key may be a secret in the wrong place: only what looks like a key is repeated.
fn printable(name: &str) -> String {
    let looks_like_a_key = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if looks_like_a_key { name.to_owned() } else { "(something else)".to_owned() }
}

impl<T: Word> Node for T {
    fn read(_was: Option<&Self>, path: &str, tree: &Tree, reader: &mut Reader) -> Option<Self> {
        reader.places.insert(path.to_owned(), tree.place.clone());
        let parsed = match &tree.content {
            _ if tree.is_null() => Err("this key cannot be null; remove it for its default".to_owned()),
            Content::Word { text, .. } => T::parse(text),
            _ => Err(format!("expected {}", T::form())),
        };
        parsed.map_err(|message| reader.wrong(&tree.place, path, message)).ok()
    }

    fn written(&self) -> Written {
        Written::Word(self.shown())
    }

    fn describe(own: Key, keys: &mut Vec<Key>) {
        keys.push(Key { form: T::form(), ..own });
    }
}

/// What can be switched off with `null`.
impl<T: Node> Node for Option<T> {
    fn read(was: Option<&Self>, path: &str, tree: &Tree, reader: &mut Reader) -> Option<Self> {
        if tree.is_null() {
            reader.places.insert(path.to_owned(), tree.place.clone());
            return Some(None);
        }
        T::read(was.and_then(Option::as_ref), path, tree, reader).map(Some)
    }

    fn check(&self, path: &str, wrong: &mut dyn FnMut(String, String)) {
        if let Some(value) = self {
            value.check(path, wrong);
        }
    }

    fn settle(&mut self, running: &Self, path: &str, apply: Apply, changes: &mut Changes) {
        match (self, running) {
            (Some(value), Some(running)) => value.settle(running, path, apply, changes),
            (None, None) => {}
            (_, _) if apply == Apply::Live => changes.applied.push(path.to_owned()),
            (value, running) => {
                changes.restart.push(path.to_owned());
                value.clone_from(running);
            }
        }
    }

    fn written(&self) -> Written {
        self.as_ref().map_or(Written::Word(Value::Null), Node::written)
    }

    fn describe(own: Key, keys: &mut Vec<Key>) {
        let at = keys.len();
        T::describe(own, keys);
        keys[at].form.push_str(", or null");
    }
}

/// One, or a list. A `null` in a list is the word: what it means is up to the type.
impl<T: Node> Node for Vec<T> {
    fn read(_was: Option<&Self>, path: &str, tree: &Tree, reader: &mut Reader) -> Option<Self> {
        reader.places.insert(path.to_owned(), tree.place.clone());
        let entries = match &tree.content {
            _ if tree.is_null() => {
                reader.wrong(
                    &tree.place,
                    path,
                    "this key cannot be null; write [] for none, or remove it for its default",
                );
                return None;
            }
            Content::Word { text, .. } => T::entries(text, &tree.place),
            Content::List(items) => items.clone(),
            Content::Section(_) => vec![tree.clone()],
        };
        let mut all = Vec::new();
        let count = entries.len();
        for (index, mut entry) in entries.into_iter().enumerate() {
            if let Content::Word { quoted, .. } = &mut entry.content {
                *quoted = true;
            }
            let path = format!("{path}[{index}]");
            // What is wrong with an entry may be what it does not have.
            reader.places.insert(path.clone(), entry.place.clone());
            all.extend(T::read(None, &path, &entry, reader));
        }
        (all.len() == count).then_some(all)
    }

    fn check(&self, path: &str, wrong: &mut dyn FnMut(String, String)) {
        for (index, entry) in self.iter().enumerate() {
            entry.check(&format!("{path}[{index}]"), wrong);
        }
    }

    fn written(&self) -> Written {
        Written::List(self.iter().map(Node::written).collect())
    }

    fn describe(own: Key, keys: &mut Vec<Key>) {
        let mut below = Vec::new();
        T::describe(Key { path: format!("{}[]", own.path), ..own.clone() }, &mut below);
        let entry = below.remove(0);
        keys.push(Key { form: format!("one or a list: {}", entry.form), ..own });
        keys.extend(below);
    }
}

/// Declares a section: its struct, its defaults, and all that [`Node`] wants to know.
///
/// Each key is written as `live name: Type = default => least..=most,` with its meaning above it; the range is left out
/// where the type says it all. `Name(key)` can be written as the value of that key alone. In place of `live`, which a reload applies, `restart` is for what only a start does, and
/// `section name: Type,` for a section below this one.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident $(($short:ident))? {
        $($(#[doc = $meaning:literal])* $apply:ident $key:ident: $type:ty $(= $default:expr)? $(=> $range:expr)?,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $meaning])* $(#[doc = concat!("\n\nRange: `", stringify!($range), "`.")])? pub $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: section!(@default $($default)?),)+ }
            }
        }

        impl $crate::config::node::Node for $name {
            fn read(
                was: Option<&Self>,
                path: &str,
                tree: &$crate::config::tree::Tree,
                reader: &mut $crate::config::node::Reader,
            ) -> Option<Self> {
                let mut read = was.cloned().unwrap_or_default();
                $(let tree = &tree.spelled_out(stringify!($short));)?
                for (name, place, value) in reader.entries(path, tree, &[$(stringify!($key)),+]) {
                    match name {
                        $(stringify!($key) => {
                            let path = $crate::config::node::join(path, name);
                            if let Some(value) = $crate::config::node::Node::read(Some(&read.$key), &path, value, reader) {
                                read.$key = value;
                            }
                        })+
                        unknown => reader.unknown(path, unknown, place),
                    }
                }
                Some(read)
            }

            fn check(&self, path: &str, wrong: &mut dyn FnMut(String, String)) {
                $(
                    let key = $crate::config::node::join(path, stringify!($key));
                    $crate::config::node::Node::check(&self.$key, &key, wrong);
                    $($crate::config::node::Ranged::check(&self.$key, &key, &$range, wrong);)?
                )+
            }

            fn settle(
                &mut self,
                running: &Self,
                path: &str,
                _apply: $crate::config::Apply,
                changes: &mut $crate::config::Changes,
            ) {
                use $crate::config::node::{Node, join};
                $(
                    let (key, apply) = (join(path, stringify!($key)), section!(@apply $apply));
                    Node::settle(&mut self.$key, &running.$key, &key, apply, changes);
                )+
            }

            fn written(&self) -> $crate::config::node::Written {
                $crate::config::node::Written::Section(vec![
                    $((stringify!($key), $crate::config::node::Node::written(&self.$key)),)+
                ])
            }

            fn describe(own: $crate::config::node::Key, keys: &mut Vec<$crate::config::node::Key>) {
                let (path, defaults) = (own.path.clone(), Self::default());
                keys.push($crate::config::node::Key { form: section!(@form $($short)?), ..own });
                $(
                    let own = $crate::config::node::Key {
                        path: $crate::config::node::join(&path, stringify!($key)),
                        form: String::new(),
                        default: $crate::config::node::Node::written(&defaults.$key).in_line(),
                        range: section!(@range $type $(, $range)?),
                        apply: section!(@apply $apply),
                        meaning: [$($meaning),*].concat().trim().to_owned(),
                    };
                    <$type as $crate::config::node::Node>::describe(own, keys);
                )+
            }

            fn entries(text: &str, place: &$crate::config::Place) -> Vec<$crate::config::tree::Tree> {
                $crate::config::tree::Tree::list(text, place)
            }
        }
    };
    (@form) => { "a section".to_owned() };
    (@form $short:ident) => { concat!("a section, or its `", stringify!($short), "` alone").to_owned() };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@range $type:ty) => { None };
    (@range $type:ty, $range:expr) => {{
        let range = $range;
        let show = <$type as $crate::config::node::Ranged>::show;
        Some((show(range.start()), show(range.end())))
    }};
    (@apply live) => { $crate::config::node::Apply::Live };
    (@apply restart) => { $crate::config::node::Apply::Restart };
    (@apply section) => { $crate::config::node::Apply::Section };
}

/// Declares a value that is one of some words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $variant,)+ }

        impl $name {
            /// As it is written.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl $crate::config::node::Word for $name {
            fn form() -> String {
                [$($word),+].join(" | ")
            }

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", [$($word),+].join(", "))),
                }
            }

            fn shown(&self) -> serde_json::Value {
                self.as_str().into()
            }
        }
    };
}

pub(super) use {section, words};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a.b", "c"), "a.b.c");
        assert_eq!(plain("a.b"), "a.b");
        assert_eq!(plain("topics[12].pattern"), "topics[].pattern");
        assert_eq!(plain("topics[0]"), "topics[]");
    }
}
