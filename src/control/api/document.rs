//! What the OpenAPI document says beyond what the endpoints' types say.
//! Law: a request that the document allows is refused for nothing but its size in bytes, and one that it forbids is refused.

use utoipa::openapi::schema::{AdditionalProperties, OneOfBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, Object, OpenApi, OpenApiBuilder, RefOr, Schema};

use super::errands::ONE_OF;

/// The document before there is an endpoint.
pub(super) fn begin() -> OpenApi {
    let info = InfoBuilder::new().title("Tidewheel").version(env!("CARGO_PKG_VERSION")).description(Some(
        "The admin API of one engine. Every request carries `Authorization: Bearer KEY`, the configuration's `admin.key`.",
    ));
    let needs_key = SecurityRequirement::new("key", [] as [&str; 0]);
    let mut document = OpenApiBuilder::new().info(info.build()).security(Some([needs_key])).build();
    let key = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("key", key);
    document
}

/// Adds what types cannot say.
pub(super) fn complete(document: &mut OpenApi, topic_length_max: usize) {
    // The bound is in bytes, and characters are what a document can count.
    change(document, "Topic", |mut topic| {
        topic.max_length = Some(topic_length_max);
        topic.into()
    });
    for (name, members) in ONE_OF {
        change(document, name, |request| exactly_one(&request, members));
    }
}

fn change(document: &mut OpenApi, name: &str, change: impl FnOnce(Object) -> Schema) {
    let schemas = document.components.as_mut().map(|components| &mut components.schemas);
    let schema = schemas.and_then(|schemas| schemas.get_mut(name)).expect("the endpoints use it");
    let RefOr::T(Schema::Object(object)) = schema else { unreachable!("{name} is an object") };
    *schema = RefOr::T(change(std::mem::take(object)));
}

/// `request` with each of `members` in turn, and without the others.
fn exactly_one(request: &Object, members: &[&str]) -> Schema {
    let mut variants = OneOfBuilder::new().description(request.description.clone());
    for &member in members {
        let mut variant = request.clone();
        variant.description = None;
        variant.properties.retain(|name, _| name == member || !members.contains(&name.as_str()));
        variant.required.push(member.to_owned());
        variant.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        variants = variants.item(variant);
    }
    variants.build().into()
}
