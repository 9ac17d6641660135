//! TLS of the public ports: what newcomers are offered.

mod certificate;
mod leaf;
mod names;
mod subject;
mod terms;

pub use certificate::*;
pub use leaf::Unreadable;
pub use subject::*;
pub use terms::*;
