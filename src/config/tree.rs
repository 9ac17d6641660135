//! A text as it was written: words, lists and sections, each with its place.
//! Law: nothing is given a type here, so that every value can be judged by itself and all problems be told at once.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::Place;

/// A node and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) place: Place,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A word, which is `null` if it says so and was not quoted.
    Word {
        text: String,
        quoted: bool,
    },
    List(Vec<Tree>),
    /// Keys in order, those that are there twice too. A key that is no word is `None`.
    Section(Vec<(Option<String>, Place, Tree)>),
}

/// Why a text could not be read at all.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) place: Place,
    pub(super) message: String,
}

impl Tree {
    /// A word that means what it says, from a variable or a flag. Nothing or `null` means none.
    pub(super) fn word(place: Place, text: &str) -> Self {
        let quoted = !matches!(text, "" | "null");
        Self { place, content: Content::Word { text: text.to_owned(), quoted } }
    }

    /// Whether it says that there is nothing.
    pub(super) fn is_null(&self) -> bool {
        let Content::Word { text, quoted: false } = &self.content else { return false };
        matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// The section that a word stands for: one with this key alone.
    pub(super) fn spelled_out(&self, key: &str) -> Self {
        let Content::Word { .. } = self.content else { return self.clone() };
        let entry = (Some(key.to_owned()), self.place.clone(), self.clone());
        Self { place: self.place.clone(), content: Content::Section(vec![entry]) }
    }

    /// The entries of a list of sections that was written as one text, in a variable for instance.
    pub(super) fn list(text: &str, place: &Place) -> Vec<Self> {
        match Self::parse(text, |_| place.clone()) {
            Ok(Some(Self { content: Content::List(items), .. })) => items,
            Ok(Some(tree)) => vec![tree],
            Ok(None) => Vec::new(),
            Err(_) => vec![Self::word(place.clone(), text)], // which is no section
        }
    }

    /// Reads a YAML text; `None` if nothing is in it.
    pub(super) fn parse(text: &str, place: impl Fn(usize) -> Place) -> Result<Option<Self>, Unreadable> {
        let mut builder =
            Builder { events: Parser::new_from_str(text), place, anchors: HashMap::new(), room: NODES_MAX, last: 1 };
        let mut document = None;
        loop {
            match builder.next()? {
                (Event::StreamEnd, _) => return Ok(document),
                (Event::DocumentStart(..), at) if document.is_some() => {
                    return Err(builder.unreadable(at, "a second document begins here; remove `---`"));
                }
                (Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
                (event, at) => document = Some(builder.node(event, at)?),
            }
        }
    }
}

struct Builder<I, P> {
    events: I,
    place: P,
    anchors: HashMap<usize, Tree>,
    /// How many nodes there may still be: aliases of aliases grow fast.
    room: usize,
    /// The line of the last event.
    last: usize,
}

impl<'a, I, P> Builder<I, P>
where
    I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>,
    P: Fn(usize) -> Place,
{
    fn next(&mut self) -> Result<(Event<'a>, usize), Unreadable> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.last = span.start.line();
                Ok((event, self.last))
            }
            Some(Err(error)) => Err(self.unreadable(error.marker().line(), &error.info())),
            None => Ok((Event::StreamEnd, self.last)),
        }
    }

    fn unreadable(&self, line: usize, message: &str) -> Unreadable {
        Unreadable { place: (self.place)(line), message: message.to_owned() }
    }

    fn node(&mut self, event: Event<'a>, line: usize) -> Result<Tree, Unreadable> {
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                (Content::Word { text: text.into_owned(), quoted: style != ScalarStyle::Plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list()?, anchor),
            Event::MappingStart(_, anchor, _) => (self.section()?, anchor),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                // It was written where the alias is.
                Some(tree) => (tree.content.clone(), 0),
                None => return Err(self.unreadable(line, "this alias stands for itself, or for nothing")),
            },
            _ => return Err(self.unreadable(line, "a value is missing here")),
        };
        self.room = self.room.saturating_sub(content.nodes());
        if self.room == 0 {
            return Err(self.unreadable(line, "far too much; this is no configuration"));
        }
        let tree = Tree { place: (self.place)(line), content };
        if anchor != 0 {
            self.anchors.insert(anchor, tree.clone());
        }
        Ok(tree)
    }

    fn list(&mut self) -> Result<Content, Unreadable> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::List(items)),
                (event, line) => items.push(self.node(event, line)?),
            }
        }
    }

    fn section(&mut self) -> Result<Content, Unreadable> {
        let mut entries = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Content::Section(entries)),
                (event, line) => self.node(event, line)?,
            };
            let (event, line) = self.next()?;
            let value = self.node(event, line)?;
            let name = match key.content {
                Content::Word { text, .. } => Some(text),
                _ => None,
            };
            entries.push((name, key.place, value));
        }
    }
}

impl Content {
    fn nodes(&self) -> usize {
        match self {
            Self::Word { .. } => 1,
            Self::List(items) => 1 + items.iter().map(|item| item.content.nodes()).sum::<usize>(),
            Self::Section(entries) => 1 + entries.iter().map(|(_, _, value)| value.content.nodes()).sum::<usize>(),
        }
    }
}

/// Nodes of one text, counted once for each level they lie below. A configuration has some hundred.
const NODES_MAX: usize = 100_000;
