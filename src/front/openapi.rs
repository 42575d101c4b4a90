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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::Role;
    use std::collections::BTreeSet;

    fn router() -> Router {
        let mut router = Router::new();
        router.add(Route::get("/healthz").about("Is it well").open());
        router.add(
            Route::put("/v1/streams/{name*}").about("Creates").needs(Role::Producer).answers(&[201, 409]),
        );
        router.add(
            Route::delete("/v1/streams/{name*}").about("Deletes").needs(Role::Producer).answers(&[204, 404]),
        );
        router.add(Route::get("/v1/streams").about("Lists").takes_query(&["limit", "after"]));
        router
    }

    #[test]
    fn the_description_has_every_route_and_nothing_else() {
        let router = router();
        let document = router.openapi();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
            })
            .collect();
        let routes = router
            .routes()
            .iter()
            .map(|route| (route.pattern().replace("*}", "}"), route.method().as_str().to_ascii_lowercase()));
        assert_eq!(described, routes.collect());
    }

    #[test]
    fn an_operation_says_what_it_takes_needs_and_answers() {
        let document = router().openapi();
        let put = &document["paths"]["/v1/streams/{name}"]["put"];
        assert_eq!(put["parameters"][0]["name"], "name");
        assert_eq!(put["x-roles"][0], "producer");
        assert!(put["responses"]["409"]["content"]["application/problem+json"].is_object());
        assert_eq!(document["paths"]["/v1/streams"]["get"]["parameters"][1]["name"], "after");
        assert!(document["paths"]["/healthz"]["get"].get("security").is_none());
    }
}
