//! Messages as applications send them: about 1 KB of JSON, records with names, numbers and texts, no two alike.
//! Law: a number always gives the same message.

use std::fmt::Write as _;

/// Message `number`: a list of trades, 900 to 1,100 bytes.
pub fn trades(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = format!(r#"{{"sequence":{},"trades":["#, 1_000_000 + number);
    for index in 0..TRADES {
        let separator = if index > 0 { "," } else { "" };
        let (symbol, side) = (SYMBOLS[draw(8) as usize], ["buy", "sell"][draw(2) as usize]);
        let (whole, cents, amount) = (draw(90_000) + 100, draw(100), draw(1_000_000));
        let (id, buyer, seller) = (draw(1 << 31), NAMES[draw(8) as usize], NAMES[draw(8) as usize]);
        write!(
            text,
            "{separator}{{\"id\":\"{id:08x}-{:04x}\",\"symbol\":\"{symbol}\",\"side\":\"{side}\",\"price\":{whole}.{cents:02},\
             \"quantity\":0.{amount:06},\"buyer\":\"{buyer}{}\",\"seller\":\"{seller}{}\",\"at\":17{:08}{:03}}}",
            draw(1 << 16),
            draw(10_000),
            draw(10_000),
            draw(100_000_000),
            draw(1000),
        )
        .expect("memory");
    }
    text + "]}"
}

const TRADES: usize = 6;
const SYMBOLS: [&str; 8] = ["BTC-EUR", "ETH-EUR", "SOL-USD", "ADA-USD", "XRP-EUR", "DOGE-USD", "AVAX-EUR", "LINK-USD"];
const NAMES: [&str; 8] = ["anna", "bertram", "chidi", "dolores", "emre", "fatima", "giorgio", "hanae"];
