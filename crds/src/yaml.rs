//! YAML, written and read: the only place that knows which library does it (`serde_yaml` is
//! archived; another takes its place here when one has earned it).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What went wrong in reading or writing YAML, with line and column where there is one.
pub type Error = serde_yaml::Error;

/// Reads one document.
///
/// # Errors
/// Text that is no YAML, or does not have the shape of `T`.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_yaml::from_str(text)
}

/// Reads all documents of a stream separated by `---`; empty ones are passed over.
///
/// # Errors
/// As [`from_str`]; the first document that is wrong ends the reading.
pub fn documents<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, Error> {
    use serde::Deserialize;
    serde_yaml::Deserializer::from_str(text)
        .filter_map(|document| match serde_yaml::Value::deserialize(document) {
            Ok(serde_yaml::Value::Null) => None,
            Ok(value) => Some(serde_yaml::from_value(value)),
            Err(error) => Some(Err(error)),
        })
        .collect()
}

/// Writes one document, without a leading `---`.
///
/// # Errors
/// Values that YAML cannot hold, such as maps with keys that are maps.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_yaml::to_string(value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_documents_of_a_stream_are_read() {
        let read: Vec<u32> = super::documents("1\n---\n---\n2\n").unwrap();
        assert_eq!(read, [1, 2]);
    }

    #[test]
    fn an_error_says_where() {
        let error = super::from_str::<Vec<u32>>("- 1\n- x\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
