//! `/openapi.json`, made of the routes themselves.

use serde_json::{Map, Value, json};

use super::router::{Need, Route, Router};
use crate::wire::http::reason_phrase;

impl Router {
    /// The description of every route that was added so far, as an OpenAPI 3.1 document.
    pub fn openapi(&self) -> Value {
        let mut paths = Map::new();
        for route in self.routes() {
            let path = paths.entry(route.pattern().replace("*}", "}")).or_insert_with(|| json!({}));
            path[route.method().as_str().to_ascii_lowercase()] = operation(route);
        }
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "towpath",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Live work that survives broken connections.",
            },
            "paths": paths,
            "components": {
                "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
                "schemas": { "Problem": problem_schema() },
            },
        })
    }
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "code": { "type": "string" },
            "detail": { "type": "string" },
        },
    })
}

fn operation(route: &Route) -> Value {
    let path_params = route
        .param_names()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let query_params = route.query_names().iter().map(
        |name| json!({ "name": name, "in": "query", "required": false, "schema": { "type": "string" } }),
    );
    let mut responses = Map::new();
    for &status in route.statuses() {
        let mut response = json!({ "description": reason_phrase(status) });
        if status >= 400 {
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            response["content"] = json!({ "application/problem+json": { "schema": schema } });
        }
        responses.insert(status.to_string(), response);
    }
    let mut operation = json!({
        "summary": route.summary(),
        "parameters": path_params.chain(query_params).collect::<Vec<_>>(),
        "responses": responses,
    });
    match route.need() {
        Need::Nothing => {}
        Need::Anybody => operation["security"] = json!([{ "token": [] }]),
        Need::Roles(roles) => {
            operation["security"] = json!([{ "token": [] }]);
            operation["x-roles"] = roles.iter().map(|role| role.as_str()).collect();
        }
    }
    operation
}
