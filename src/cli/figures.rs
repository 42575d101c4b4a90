//! A daemon's `/metrics`, read back.

use std::collections::BTreeMap;
use std::io::Read;

use super::{Api, Failure};

/// One look at every figure.
#[derive(Debug, Default)]
pub(super) struct Figures {
    values: BTreeMap<String, f64>,
}

impl Figures {
    /// Asks for them.
    pub(super) fn read(api: &Api) -> Result<Figures, Failure> {
        let mut text = String::new();
        api.send("GET", "/metrics", &[], None)?.into_reader().read_to_string(&mut text)?;
        Ok(Figures::parse(&text))
    }

    fn parse(text: &str) -> Figures {
        let mut values: BTreeMap<String, f64> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            // Members of one figure are added up: what is asked here is how much there is of all of them.
            let name = name.split('{').next().unwrap_or(name);
            if let Ok(value) = value.parse::<f64>() {
                *values.entry(name.to_owned()).or_default() += value;
            }
        }
        Figures { values }
    }

    /// A figure by its full name, 0 if the daemon has none of that name.
    pub(super) fn get(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or(0.0)
    }

    /// How much a counter grew since an earlier look.
    pub(super) fn since(&self, before: &Figures, name: &str) -> f64 {
        (self.get(name) - before.get(name)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_figure_are_added_up() {
        let figures = Figures::parse(
            "# HELP a b\ntowpath_links 3\ntowpath_f_total{reason=\"x\"} 2\ntowpath_f_total{reason=\"y z\"} 5\n# EOF\n",
        );
        assert_eq!((figures.get("towpath_links"), figures.get("towpath_f_total")), (3.0, 7.0));
        assert_eq!(figures.get("towpath_none"), 0.0);
    }
}
