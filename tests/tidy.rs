//! The laws of `src/lib.rs` that reading the sources can check.
//! Law: every rule below has a canary, a piece of source that breaks it, so that a rule that stopped looking fails too.

use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the bottom up. A module may name modules of lower layers and itself; within the vocabulary, each other.
const LAYERS: &[&[&str]] = &[
    &["id", "topic", "config", "metrics", "fixed", "sync", "contain"],
    &["ws", "io"],
    &["tls"],
    &["conn"],
    &["pubsub"],
    &["app"],
    &["shard"],
    &["control"],
    &["server", "bench"],
    &["cli"],
    &["main", "guide"],
];

/// Words that only some modules, or single files of others, may use.
const RESERVED: &[(&str, &[&str], &[&str])] = &[
    ("unsafe code", &["unsafe"], &["io"]),
    (
        "a syscall",
        &[
            "libc",
            "io_uring",
            "tokio_uring",
            "socket2",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "UnixListener",
            "UnixDatagram",
        ],
        &["io", "control", "server", "cli", "main"],
    ),
    // The configuration and the keys of `app` are read once, at the start.
    (
        "a file",
        &["std::fs", "fs::read", "File::open"],
        &["config", "io", "app", "control", "server", "bench/observe", "cli", "main"],
    ),
    ("a clock", &["Instant::now", "SystemTime::now"], &["io", "control", "server", "bench", "cli", "main"]),
    (
        "a lock or an await",
        &["Mutex", "RwLock", "Condvar", "parking_lot", ".await"],
        // The registry is touched when a shard gains or loses its interest in a topic, never by a message. The load generator
        // notes the first connection that ended by itself.
        &["sync", "pubsub/registry", "app", "control", "server", "bench/counts", "cli", "main"],
    ),
    (
        "what loom and shuttle cannot stand in for; `crate::sync` has it",
        &["std::sync::atomic", "std::sync::OnceLock", "parking_lot", "crossbeam::queue"],
        // Counters that nothing depends on, and what the kernel or one lock alone is party to.
        &["sync", "metrics", "io", "app/attempts", "app/auth/wish", "control", "server", "cli", "main"],
    ),
    ("a sleep", &["thread::sleep"], &["control", "server", "bench", "cli", "main"]),
];

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 90;
/// A file that fits only such a name holds two ideas that are still glued together.
const NAMES_WITHOUT_IDEA: &[&str] = &["util", "utils", "helper", "helpers", "manager", "common", "misc"];
/// Places that exist only where somebody develops. In two parts, so that this file does not break its own rule.
const ELSEWHERE: &[(&str, &str)] =
    &[("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Use", "rs/"), (" sha", "red/"), ("`sha", "red/")];
const TEXT_EXTENSIONS: &[&str] =
    &["rs", "toml", "md", "yaml", "yml", "json", "sh", "service", "conf", "html", "css", "js", "txt"];

#[test]
fn the_sources_hold_the_laws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(root, &mut files);
    let mut found = Vec::new();
    for file in &files {
        let path = file.strip_prefix(root).expect("below the root").to_str().expect("a UTF-8 path");
        found.extend(violations(path, &fs::read_to_string(file).expect("readable text")));
    }
    let sources = files.iter().filter(|file| file.starts_with(root.join("src"))).count();
    assert!(sources > 10, "{sources} source files: is this looking in the right place?");
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Every threat in the guide names tests that show what stops it, and each of them is there.
#[test]
fn tests_of_threats_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    collect(&root.join("tests"), &mut files);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let sources: Vec<(PathBuf, String)> =
        files.into_iter().map(|file| (file.clone(), fs::read_to_string(file).expect("readable text"))).collect();
    let page = fs::read_to_string(root.join("src/guide/threats.md")).expect("the page");
    let found = missing_tests(&page, &sources);
    assert!(page.matches("\n| ").count() > 30, "is this the right page?");
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// What is wrong with the last column of tables whose head ends with `tests`: tests as `file::name`, each of them a function
/// with `#[test]`, or in `proptest!`, in a file of that name. A row of dashes waits to be filled in.
fn missing_tests(page: &str, sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_of_tests = false;
    for line in page.lines() {
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            is_of_tests &= line.starts_with('|');
            continue;
        };
        let (_, last) = cells.rsplit_once(" | ").unwrap_or_default();
        if last == "tests" || !is_of_tests {
            is_of_tests |= last == "tests";
            continue;
        }
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && last != "–" {
            found.push(format!("no test in: {line}"));
        }
        for name in names {
            let (file, function) = name.split_once("::").unwrap_or((name, ""));
            let is_there = sources.iter().any(|(path, text)| {
                let stem = path.file_stem().is_some_and(|stem| stem == file);
                let is_attribute = |line: &&str| ["#[", "//"].iter().any(|begin| line.trim_start().starts_with(begin));
                stem && occurrences(text, &format!("fn {function}(")).any(|at| {
                    let mut above = text[..at].trim_end().lines().rev().take_while(is_attribute);
                    above.any(|line| line.trim() == "#[test]")
                })
            });
            if !is_there {
                found.push(format!("no such test: {name}"));
            }
        }
    }
    found
}

#[test]
fn canary_threats() {
    let sources = [(PathBuf::from("tests/e2e/limits.rs"), "#[test]\nfn one() {}\n\nfn two() {}\n".to_owned())];
    let check = |rows: &str, expected: &[&str]| {
        let found = missing_tests(&format!("| threat | tests |\n|---|---|\n{rows}"), &sources);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(found, expected)| found.contains(expected)), "{found:?}");
    };
    check("| a | `limits::one` |\n| b | – |", &[]);
    check("| a | `limits::one`, `limits::two` |", &["limits::two"]);
    check("| a | `other::one` |\n| b | none |", &["other::one", "no test in"]);
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            // What the tests install and write lies in hidden directories.
            let hidden = name.starts_with('.') && name != ".ci";
            if !hidden && !matches!(name, "target" | "node_modules") {
                collect(&path, files);
            }
        } else if TEXT_EXTENSIONS.iter().any(|extension| name.ends_with(&format!(".{extension}"))) {
            files.push(path);
        }
    }
}

/// Everything wrong with one file, as `path:line: what`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    check_places(path, text, &mut found);
    if !path.ends_with(".rs") {
        return found;
    }
    if !text.starts_with("//!") {
        found.push(format!("{path}:1: does not open with `//!`, its job and its law"));
    }
    let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    if path.split('/').chain([stem]).any(|part| NAMES_WITHOUT_IDEA.contains(&part)) {
        found.push(format!("{path}:1: a name without an idea"));
    }
    let code = without_tests(&without_comments_and_text(text)).to_owned();
    let Some(module) = module_of(path) else {
        check_reserved(path, &code, "tests", &RESERVED[..1], &mut found);
        return found;
    };
    if stem == "tests" {
        return found;
    }
    let lines = code.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("{path}:{lines}: {lines} lines without tests, more than {FILE_LINES_MAX}"));
    }
    check_functions(path, &code, &mut found);
    check_reserved(path, &code, module, RESERVED, &mut found);
    if module != "lib" {
        check_imports(path, &code, module, &mut found);
    }
    found
}

fn check_places(path: &str, text: &str, found: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for (one, two) in ELSEWHERE {
            let place = format!("{one}{two}");
            if line.contains(&place) {
                found.push(format!("{path}:{}: refers to `{}`", number + 1, place.trim()));
            }
        }
    }
}

fn check_reserved(path: &str, code: &str, module: &str, rules: &[(&str, &[&str], &[&str])], found: &mut Vec<String>) {
    let file = path.trim_start_matches("src/").trim_end_matches(".rs");
    for (what, words, places) in rules {
        if places.contains(&module) || places.contains(&file) {
            continue;
        }
        for word in *words {
            for at in occurrences(code, word) {
                found.push(format!("{path}:{}: {what} (`{word}`) does not belong here", line_of(code, at)));
            }
        }
    }
}

fn check_imports(path: &str, code: &str, module: &str, found: &mut Vec<String>) {
    let Some(layer) = layer_of(module) else {
        found.push(format!("{path}:1: the module `{module}` has no layer"));
        return;
    };
    for (at, name) in named_modules(path, code) {
        let line = line_of(code, at);
        let is_below = |other: usize| other < layer || other == 0;
        match layer_of(&name) {
            _ if name == module => {}
            Some(other) if is_below(other) => {}
            Some(_) => found.push(format!("{path}:{line}: `{module}` must not know `{name}`")),
            None => found.push(format!("{path}:{line}: `{name}` is no module with a layer; name it where it is")),
        }
    }
}

/// The top-level modules that code names, with where: `crate::a`, `crate::{a, b::c}`, `tidewheel::a`, and `super::a`
/// where that is the crate.
fn named_modules(path: &str, code: &str) -> Vec<(usize, String)> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = Vec::new();
    for root in ["crate::", "tidewheel::"] {
        for at in occurrences(code, root) {
            let rest = &code[at + root.len()..];
            let Some(list) = rest.strip_prefix('{') else {
                named.push((at, ident(rest)));
                continue;
            };
            let mut depth = 1;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (depth == 1 && c == ',') {
                    named.push((at, ident(item.trim())));
                    item.clear();
                    if depth == 0 {
                        break;
                    }
                } else {
                    item.push(c);
                }
            }
        }
    }
    // What the crate's root re-exports is for those outside, the command among them.
    let is_outside = matches!(module_of(path), Some("main" | "cli"));
    named.retain(|(_, name)| !name.is_empty() && (!is_outside || layer_of(name).is_some()));
    let super_is_crate = path.matches('/').count() == 1 || path.ends_with("/mod.rs") && path.matches('/').count() == 2;
    let ups = if super_is_crate { "super::" } else { "super::super::" };
    for at in occurrences(code, ups) {
        let name = ident(&code[at + ups.len()..]);
        if layer_of(&name).is_some() {
            named.push((at, name));
        }
    }
    named
}

fn check_functions(path: &str, code: &str, found: &mut Vec<String>) {
    for at in occurrences(code, "fn") {
        // The body opens at the first brace; a declaration ends at a semicolon that is in no bracket, as in `[u8; 4]`.
        let mut brackets = 0;
        let open = code[at..].char_indices().find(|(_, c)| {
            brackets += i32::from(matches!(c, '[' | '(')) - i32::from(matches!(c, ']' | ')'));
            brackets == 0 && matches!(c, '{' | ';')
        });
        let Some((open, '{')) = open.map(|(offset, c)| (at + offset, c)) else { continue };
        let mut depth = 0;
        let close = code[open..].char_indices().find_map(|(offset, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + offset)
        });
        let lines = code[at..close.unwrap_or(code.len())].matches('\n').count() + 1;
        if lines > FUNCTION_LINES_MAX {
            let line = line_of(code, at);
            found.push(format!("{path}:{line}: a function of {lines} lines, more than {FUNCTION_LINES_MAX}"));
        }
    }
}

/// The top-level module a file of `src/` belongs to; `None` elsewhere.
fn module_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    Some(below.split('/').next()?.trim_end_matches(".rs"))
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Where `word` stands as a word, not as a part of one.
fn occurrences<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back().is_some_and(in_word) && word.starts_with(in_word);
        let after = code[at + word.len()..].chars().next().is_some_and(in_word) && word.ends_with(in_word);
        !before && !after
    })
}

/// The code before the file's own tests, which come last.
fn without_tests(code: &str) -> &str {
    let tests = code.match_indices("#[cfg(test)]").find(|(at, attribute)| {
        let item = code[at + attribute.len()..].trim_start();
        item.strip_prefix("mod ").is_some_and(|module| module.contains('{'))
    });
    tests.map_or(code, |(at, _)| &code[..at])
}

/// The code with every comment and every text literal blanked; lines stay where they are.
fn without_comments_and_text(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let blanked = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment_length(rest),
            '"' => text_length(rest),
            'r' if !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') || code.ends_with('b') => {
                raw_text_length(rest)
            }
            '\'' => char_length(rest),
            _ => 0,
        };
        let length = blanked.max(c.len_utf8());
        if blanked == 0 {
            code.push(c);
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = &rest[length..];
    }
    code
}

fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn text_length(rest: &str) -> usize {
    let mut escaped = false;
    let end = rest[1..].char_indices().find(|(_, c)| {
        let is_end = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        is_end
    });
    end.map_or(rest.len(), |(at, _)| at + 2)
}

/// The length of `r"…"`, `r#"…"#` …; 0 if it is none.
fn raw_text_length(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let body = 2 + hashes;
    let end = format!("\"{}", "#".repeat(hashes));
    rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
}

/// The length of a character literal; 0 if the quote opens a lifetime.
fn char_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => chars.skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// `body` as the file at `path` must have exactly the violations that contain `expected`, in order.
#[track_caller]
fn check(path: &str, body: &str, expected: &[&str]) {
    let found = violations(path, &format!("//! A canary.\n{body}"));
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (violation, expected) in found.iter().zip(expected) {
        assert!(violation.contains(expected), "{violation} does not say {expected}");
    }
}

#[test]
fn canary_imports_point_down() {
    check("src/conn/mod.rs", "use crate::shard::Shard;", &["src/conn/mod.rs:2: `conn` must not know `shard`"]);
    check("src/conn/mod.rs", "fn f() { crate::shard::g(); super::app::g(); }", &["`shard`", "`app`"]);
    check("src/conn/pool.rs", "use super::super::pubsub;", &["`pubsub`"]);
    check("src/ws/frame.rs", "use crate::io::Io;", &["`ws` must not know `io`"]);
    check("src/io/uring.rs", "use crate::ws;", &["`io` must not know `ws`"]);
    check("src/id.rs", "use crate::{fixed::{RingQueue, SlotMap}, conn::{self, Conn}};", &["`id` must not know `conn`"]);
    check("src/server/mod.rs", "use super::main;", &["`main`"]);
    check("src/shard/mod.rs", "use tidewheel::server;", &["`server`"]);
    check("src/app/mod.rs", "use crate::Engine;", &["`Engine` is no module"]);
    check("src/cli/serve.rs", "use tidewheel::{Engine, config::Config};", &[]);
    check("src/gossip/mod.rs", "", &["`gossip` has no layer"]);
    check("src/shard/mod.rs", "use crate::{app, conn::Conn, io::Io};\nuse super::turn;", &[]);
    check("src/fixed/slot_map.rs", "use crate::id::ConnKey;\nuse super::Full; // crate::shard", &[]);
    check("src/io/sim.rs", "#[cfg(test)]\nmod tests { use crate::shard; }", &[]);
    check("src/io/sim.rs", "#[cfg(test)]\nmod tests;\nuse crate::shard;", &["src/io/sim.rs:4: "]);
}

#[test]
fn canary_words_belong_to_modules() {
    check("src/conn/mod.rs", "fn f() { unsafe { g() } }", &["unsafe code"]);
    check("tests/e2e.rs", "unsafe fn f() {}", &["unsafe code"]);
    check("src/io/uring.rs", "fn f() { unsafe { libc::close(0) } }", &[]);
    check("src/app/mod.rs", "use std::net::TcpStream;\nuse io_uring::squeue;", &["io_uring", "TcpStream"]);
    check("src/shard/mod.rs", "fn f() { std::fs::read(p) }", &["a file (`std::fs`)", "a file (`fs::read`)"]);
    check("src/shard/mod.rs", "fn f() -> Instant { Instant::now() }", &["a clock"]);
    check("src/pubsub/mod.rs", "fn f(m: &Mutex<u8>) { m.lock().await }", &["`Mutex`", "`.await`"]);
    check("src/pubsub/registry.rs", "use crate::sync::RwLock;", &[]);
    check("src/pubsub/bus.rs", "use crossbeam::queue::ArrayQueue;", &["cannot stand in for"]);
    check("src/shard/orders.rs", "use std::sync::atomic::AtomicBool;", &["cannot stand in for"]);
    check("src/io/uring.rs", "fn f() { std::thread::sleep(d) }", &["a sleep"]);
    check("src/conn/mod.rs", "#![forbid(unsafe_code)]\n/* unsafe /* */ libc */ const A: &str = \"unsafe\";", &[]);
    check("src/conn/mod.rs", "const A: &[u8] = br#\"unsafe\"#; const B: char = '\"'; use std::net::SocketAddr;", &[]);
    check(
        "src/conn/mod.rs",
        "fn f<'a>(c: &'a str) -> bool { c == '\\'' } const C: X = unsafe { 1 };",
        &["src/conn/mod.rs:2: "],
    );
}

#[test]
fn canary_form() {
    assert_eq!(violations("src/id.rs", "use std::fmt;").len(), 1);
    check("src/conn/helpers.rs", "", &["a name without an idea"]);
    check("src/utils/mod.rs", "", &["a name without an idea", "no layer"]);
    check("src/id.rs", &"\n".repeat(FILE_LINES_MAX - 1), &[]);
    check("src/id.rs", &"\n".repeat(FILE_LINES_MAX), &["701 lines"]);
    let function =
        |lines: usize| format!("trait A {{ fn g(); }}\nfn f(a: fn(u8), b: [u8; 4]) {{{}}}\n", "{}\n".repeat(lines - 1));
    check("src/id.rs", &function(FUNCTION_LINES_MAX), &[]);
    check("src/id.rs", &function(FUNCTION_LINES_MAX + 1), &["src/id.rs:3: a function of 91 lines"]);
    let test = format!("#[cfg(test)]\nmod tests {{\n{}}}", function(FILE_LINES_MAX));
    check("src/id.rs", &test, &[]);
}

#[test]
fn canary_places() {
    for (one, two) in ELSEWHERE {
        check("README.md", &format!("see {one}{two}x"), &["README.md:2: refers to"]);
    }
    check("src/id.rs", "// frames are shared, /workers are not", &[]);
}
