//! Connections of nobody in particular, counted by the address they come from.
//! Law: a connection that comes while `max_connections_per_address` is set is listed under its address exactly as long
//! as it is open without an identity and needs none. Who authenticates moves to its client's list.

use std::net::SocketAddr;

use crate::app::clients::{Place, TooMany};
use crate::config::AttemptRate;
use crate::config::network::Network;
use crate::conn::Endpoint;
use crate::id::ConnKey;
use crate::io::Io;

use super::Shard;

impl<I: Io> Shard<I> {
    /// Lists a connection that is about to be upgraded without an identity, and returns those that have to go for it.
    ///
    /// # Errors
    /// The address has as many as it may, and none of them has to go.
    pub(super) fn list_anonymous(
        &mut self,
        key: ConnKey,
        endpoint: Endpoint,
        client: Option<SocketAddr>,
    ) -> Result<Vec<Place>, TooMany> {
        let needs_identity = self.settings.auth_required && endpoint == Endpoint::Native;
        let (Some(client), Some(most), false) = (client, self.settings.address_connections_max, needs_identity) else {
            return Ok(Vec::new());
        };
        let policy = self.settings.client_limit_policy;
        let name = self.prefix_of(client).to_string();
        let evicted = self.shared.addresses.admit(&name, Some(most), policy, (self.id, key))?;
        self.anonymous.insert(key, name.into());
        Ok(evicted)
    }

    /// A connection ends, or is somebody's from now on.
    pub(super) fn unlist_anonymous(&mut self, key: ConnKey) {
        if let Some(name) = self.anonymous.remove(&key) {
            self.shared.addresses.release(&name, (self.id, key));
        }
    }

    /// What counts as one address, here as for attempts to connect.
    fn prefix_of(&self, client: SocketAddr) -> Network {
        let AttemptRate { ipv4_prefix, ipv6_prefix, .. } = self.settings.prefixes;
        let address = client.ip().to_canonical();
        Network::of(address, if address.is_ipv4() { ipv4_prefix } else { ipv6_prefix })
    }
}
