//! What is left to do with the encoder's text.
//! Law: bounds of buckets are canonical numbers, as OpenMetrics asks (the encoder writes `1048576.0` for
//! `1.048576e+06`), and readers that do not ask for OpenMetrics get the older format.

use std::borrow::Cow;

/// The text with canonical bounds.
pub(super) fn canonical(text: &str) -> String {
    let mut canonical = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{le=\"")
        && let Some((bound, after)) = after.split_once('"')
    {
        canonical.extend([before, "{le=\"", &bound_of(bound), "\""]);
        rest = after;
    }
    canonical + rest
}

/// The text in Prometheus' older format: a counter's description has the name of its samples, and no EOF ends it.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        match line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            Some((name, help)) if lines.peek().is_some_and(|line| line.ends_with(" counter")) => {
                plain.push_str(&format!("# HELP {name}_total {help}\n# TYPE {name}_total counter\n"));
                lines.next();
            }
            _ if line == "# EOF" => {}
            _ => plain.extend([line, "\n"]),
        }
    }
    plain
}

/// As Go prints it, with `.0` where neither point nor exponent would show that it is no integer.
fn bound_of(bound: &str) -> Cow<'_, str> {
    let Ok(value) = bound.parse::<f64>() else { return bound.into() };
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((mantissa, exponent)) => match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..6).contains(&exponent) => format!("{mantissa}e{exponent:+03}").into(),
            _ => format!("{value:?}").into(),
        },
        None => bound.into(), // infinite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_canonical() {
        let check = |written: &str, expected: &str| assert_eq!(bound_of(written), expected);
        check("0.00001", "1e-05");
        check("0.000025", "2.5e-05");
        check("0.0001", "0.0001");
        check("0.0", "0.0");
        check("64.0", "64.0");
        check("604800.0", "604800.0");
        check("1048576.0", "1.048576e+06");
        check("+Inf", "+Inf");
        assert_eq!(
            canonical("a{le=\"0.00001\",b=\"c\"} 1\na{le=\"+Inf\"} 2"),
            "a{le=\"1e-05\",b=\"c\"} 1\na{le=\"+Inf\"} 2"
        );
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples() {
        let text = "# HELP a Of a.\n# TYPE a counter\na_total 1\n# HELP b Of b.\n# TYPE b gauge\nb 2\n# EOF\n";
        let expected = "# HELP a_total Of a.\n# TYPE a_total counter\na_total 1\n# HELP b Of b.\n# TYPE b gauge\nb 2\n";
        assert_eq!(plain(text), expected);
    }
}
