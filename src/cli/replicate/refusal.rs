//! Databases that are open and not replicated, as the status tells of them.

use std::collections::HashMap;

use serde_json::Value;

/// A database that is open and not replicated.
pub(super) struct Refusal {
    pub(super) why: String,
    /// True if no replica has the database.
    pub(super) of_all: bool,
}

/// The refusals in what `walferry_status()` gives, by the path of the database.
pub(super) fn of(status: Vec<Value>) -> HashMap<String, Refusal> {
    let mut states: HashMap<String, HashMap<String, (bool, String)>> = HashMap::new();
    for one in status {
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_string();
        let replicas = states.entry(text("database")).or_default();
        let replica = replicas.entry(text("replica")).or_insert((true, String::new()));
        replica.0 &= one["state"] == "error";
        replica.1 = text("last_error");
    }
    let refusals = states.into_iter().filter_map(|(database, replicas)| {
        let of_all = replicas.values().all(|(refused, _)| *refused);
        let why = replicas.into_values().find(|(refused, _)| *refused)?.1;
        Some((database, Refusal { why, of_all }))
    });
    refusals.collect()
}
