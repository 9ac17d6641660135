//! What is written, what is documented and what is watched are the same.

use std::collections::{BTreeMap, BTreeSet};

use super::super::running::Room;
use super::super::{Drains, Shards, api};
use super::*;
use crate::config::Config;
use crate::metrics::{CloseReason, Deflated, Drop, Inflated, PanicSite, Refusal};

/// Type and labels by the name that a query uses; a histogram's without `_bucket`, `_sum` and `_count`.
type Families = BTreeSet<(String, (String, BTreeSet<String>))>;

fn exposed() -> Families {
    let shards = (0..2).map(|_| Arc::<ShardMetrics>::default()).collect();
    let holdings = Box::new(|| Holdings { bus_depths: vec![0; 2], ..Holdings::default() });
    let files = tempfile::tempdir().unwrap();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let [chain, key] = [("chain", cert.pem()), ("key", signing_key.serialize_pem())].map(|(name, pem)| {
        let file = files.path().join(name);
        std::fs::write(&file, pem).unwrap();
        file
    });
    let open = Config::parse(&format!(
        "auth: {{required: false, jwks: 'http://127.0.0.1:1/'}}\n\
         tls: {{listen: 127.0.0.1:0, cert_file: {}, key_file: {}}}",
        chain.display(),
        key.display()
    ));
    let open = open.unwrap();
    let room = Room { connections: 1, slots: 1 };
    let running = Running::new(open, room, Shards::new(2, Arc::default()), None).unwrap();
    let (running, phase) = (Arc::new(running), Arc::<Phase>::default());
    let drains = Arc::new(Drains::new(running.clone(), phase.clone(), Vec::new()));
    let (_, api) = api::build(running.clone(), drains, Vec::new());
    let exposition = Exposition::new(shards, phase, holdings, running, api);
    let (_, text) = exposition.encode("").unwrap();
    let mut families = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            name.clone_into(&mut current);
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels = labels.split("=\"").map(|text| text.rsplit(['"', ',']).next().unwrap_or_default().trim());
            let labels = labels.filter(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() && byte != b'}'));
            let own = &mut families.get_mut(&current).expect("a description comes first").1;
            own.extend(labels.filter(|label| !label.is_empty() && *label != "le").map(String::from));
        }
    }
    families.into_iter().collect()
}

#[test]
fn the_guide_documents_exactly_what_is_exposed() {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(|cell| cell.trim_matches([' ', '`']));
        let (name, kind, labels) = (cells.next()?, cells.next()?, cells.next()?);
        let labels = labels.split("`, `").filter(|label| !label.is_empty()).map(String::from);
        let is_metric = ["gauge", "counter", "histogram"].contains(&kind);
        is_metric.then(|| (name.to_owned(), (kind.to_owned(), labels.collect())))
    };
    let guide = include_str!("../../guide/metrics.md");
    let rows: Vec<_> = guide.lines().filter_map(row).collect();
    let documented: Families = rows.iter().cloned().collect();
    assert_eq!(documented.len(), rows.len(), "a metric is documented twice");
    let exposed = exposed();
    let undocumented: Vec<_> = exposed.iter().filter(|family| !documented.contains(family)).collect();
    let unknown: Vec<_> = documented.iter().filter(|family| !exposed.contains(family)).collect();
    assert!(
        undocumented.is_empty() && unknown.is_empty(),
        "src/guide/metrics.md: no row says {undocumented:#?}, and nothing is exposed as {unknown:#?}"
    );
}

#[test]
fn the_guide_documents_every_value_of_labels_that_have_many() {
    let (_, values) = include_str!("../../guide/metrics.md").split_once("# Values of labels").unwrap();
    let reasons = CloseReason::ALL.iter().map(|reason| reason.label());
    let refusals = Refusal::ALL.iter().map(|cause| cause.label());
    let drops = Drop::ALL.iter().map(|cause| cause.label());
    let codecs = Deflated::ALL.iter().map(|one| one.label()).chain(Inflated::ALL.iter().map(|one| one.label()));
    let labels = reasons.chain(refusals).chain(drops).chain(codecs);
    let labels = labels.chain(PanicSite::ALL.iter().map(|place| place.label()));
    for label in labels {
        assert!(values.contains(&format!("\n| `{label}` |")), "src/guide/metrics.md does not say what `{label}` means");
    }
}

/// The words of a text that are, or look like, names of this server's metrics.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let ours = ["websocket_", "active_websocket_", "tidewheel_", "process_"];
    words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix) && !word.ends_with('_'))).collect()
}

#[test]
fn rules_and_dashboard_watch_what_is_exposed() {
    let recording = include_str!("../../../tuning/prometheus/recording.rules.yml");
    let alerts = include_str!("../../../tuning/prometheus/alerts.rules.yml");
    let dashboard = include_str!("../../../tuning/grafana/tidewheel.json");
    let recorded: BTreeSet<&str> =
        recording.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let exposed = exposed();
    let is_exposed = |name: &str| {
        exposed.iter().any(|(family, (kind, _))| match name.strip_prefix(family.as_str()) {
            Some("") => kind != "histogram",
            Some("_bucket" | "_sum" | "_count") => kind == "histogram",
            _ => false,
        })
    };
    // Only what is asked: what is said to people may name a histogram as such.
    let queries = |text: &str, key: &str| {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        lines.map(String::from).collect::<Vec<_>>().join("\n")
    };
    let (alerts_asked, recorded_of) = (queries(alerts, "expr: "), queries(recording, "expr: "));
    let asked = queries(dashboard, "\"expr\": ");
    for (file, text, least) in
        [("alerts", &alerts_asked, 15), ("recording", &recorded_of, 12), ("dashboard", &asked, 30)]
    {
        let names = names(text);
        assert!(names.len() >= least, "{file}: {names:?} is too little");
        let unknown: Vec<_> = names.into_iter().filter(|name| !recorded.contains(name) && !is_exposed(name)).collect();
        assert!(unknown.is_empty(), "{file}: nothing is exposed or recorded as {unknown:?}");
    }
    serde_json::from_str::<serde_json::Value>(dashboard).expect("a dashboard is JSON");
}
