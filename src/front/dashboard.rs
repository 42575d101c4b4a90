//! The dashboard: one page, its script and its style, in the binary.
//!
//! The page uses the public API alone. Its policy lets it load and reach nothing but this daemon; it
//! carries no inline script or style, so that nothing a stream says can become one.

use super::{Response, Route, Router};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, media type, contents.
const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard/dashboard.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("dashboard/dashboard.js")),
];

/// Adds the page and what it loads. The files hold no data, so they need no credentials; what the page
/// asks for does.
pub fn add_dashboard(router: &mut Router) {
    for &(path, media, contents) in FILES {
        router.add(Route::get(path).about("The dashboard").open().to(move |_, reply| {
            let response = Response::bytes(200, media, contents.as_bytes().to_vec())
                .header("content-security-policy", POLICY)
                .header("x-content-type-options", "nosniff")
                .header("referrer-policy", "no-referrer")
                .header("cache-control", "no-cache");
            reply.send(response);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_to_its_policy() {
        for (path, _, contents) in FILES {
            for foreign in ["http://", "https://", "//cdn"] {
                let own = contents.replace("http://www.w3.org/2000/svg", "").replace("https:\"", "");
                assert!(!own.contains(foreign), "{path} names {foreign}");
            }
            for unsafe_sink in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=",
                "onclick=",
            ] {
                assert!(!contents.contains(unsafe_sink), "{path} has {unsafe_sink}");
            }
        }
        let (_, _, page) = FILES[0];
        assert!(!page.contains("<style") && page.matches("<script").count() == 1);
    }
}
