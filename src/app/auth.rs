//! temporary
use crate::conn::Identity;
pub use crate::conn::permissions::check_topic;
pub struct AuthSettings { pub keys: Vec<KeySettings>, pub issuer: Option<String>, pub audience: Option<String>, pub leeway: std::time::Duration }
pub struct KeySettings { pub id: Option<String>, pub algorithm: jsonwebtoken::Algorithm, pub key: KeyMaterial }
pub enum KeyMaterial { Secret(Vec<u8>), Pem(Vec<u8>) }
#[derive(Debug)] pub struct Authenticator;
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct AuthSetupError;
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct AuthError;
pub struct Claims { pub identity: Identity }
impl Authenticator { pub fn new(_: &AuthSettings) -> Result<Self, AuthSetupError> { Ok(Self) } pub fn verify(&self, _t: &str, _u: u64) -> Result<Claims, AuthError> { Err(AuthError) } }
