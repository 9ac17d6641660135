//! How networks are written, in `proxy.trusted`.
//! Law: an address belongs to a network by its bits alone; IPv4 addresses that came mapped into IPv6 are IPv4 addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses with the same leading bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Zeros behind the leading bits; never an IPv4 address mapped into IPv6.
    first: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => address.to_bits() & ipv4_mask(self.prefix) == first.to_bits(),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits() & ipv6_mask(self.prefix) == first.to_bits(),
            _ => false,
        }
    }

    /// The network of this address with so many leading bits, of which there are at most 32 or 128.
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        let first = match address {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & ipv4_mask(prefix))),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & ipv6_mask(prefix))),
        };
        Self { first, prefix }
    }
}

fn ipv4_mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn ipv6_mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no network: write an address, or its leading bits, such as 10.0.0.0/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        let network = Self::of(address, prefix);
        if network.first != address {
            return Err(format!("`{text}` has bits behind the first {prefix}; write {network}"));
        }
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), ipv4 @ IpAddr::V4(_)) => {
                prefix.checked_sub(MAPPED).map(|prefix| Self::of(ipv4, prefix)).ok_or_else(wrong)
            }
            _ => Ok(network),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// Leading bits of an IPv4 address mapped into IPv6 that are the same in all.
const MAPPED: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(network: &str, address: &str, expected: bool) {
        let network: Network = network.parse().unwrap();
        assert_eq!(network.contains(address.parse().unwrap()), expected, "{address} in {network}");
        assert_eq!(network.to_string().parse(), Ok(network));
    }

    #[track_caller]
    fn wrong(text: &str, problem: &str) {
        let said = text.parse::<Network>().unwrap_err();
        assert!(said.starts_with(&format!("`{text}` {problem}")), "{said}");
    }

    #[test]
    fn addresses_of_networks() {
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.0/8", "::ffff:10.1.2.3", true);
        check("10.0.0.0/8", "::10.1.2.3", false);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.2", false);
        check("10.1.2.2/31", "10.1.2.3", true);
        check("0.0.0.0/0", "192.0.2.1", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("::/0", "2001:db8::1", true);
        check("::/0", "192.0.2.1", false);
        check("2001:db8::/32", "2001:db8:ffff::1", true);
        check("2001:db8::/32", "2001:db9::", false);
        check("fd00::/8", "fdff::1", true);
        check("::1", "::1", true);
        check("::1", "::2", false);
        check("::ffff:10.0.0.0/104", "10.1.2.3", true);
        check("::ffff:10.0.0.0/104", "11.1.2.3", false);
        check("::ffff:192.0.2.1", "192.0.2.1", true);
    }

    #[test]
    fn what_is_no_network() {
        for text in [
            "",
            "/",
            "10",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "010.0.0.0/8",
            "::/129",
            "[::1]",
            "::1%lo",
            "fe80::1%1/64",
            "localhost",
            "10.0.0.0/300",
            "::ffff:0:0/95",
            "10.0.0.1:80",
        ] {
            wrong(text, "");
        }
        wrong("10.0.0.1/8", "has bits behind the first 8; write 10.0.0.0/8");
        wrong("2001:db8::1/32", "has bits behind the first 32; write 2001:db8::/32");
    }
}
