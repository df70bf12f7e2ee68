//! How much memory a JSON text takes once it is a tree of values. Pure.
//!
//! A few bytes of text can become a hundred times as many in memory: `{"":0},` is seven bytes, and an object with a node of its own.
//! Whoever reads texts of strangers has to know that before, not after.

/// One value in a list or an object, with room for its growth, and the name and the text that it may have.
const VALUE: usize = 128;
/// An object that is not empty: `serde_json` gives it a node for eleven entries.
const OBJECT: usize = 704;
/// A list that is not empty begins with room for four values.
const LIST: usize = 128;
/// What is surely less than this is not looked at more closely.
const SMALL: usize = 512 << 10;

/// About how many bytes the tree of a JSON text takes, and rather more than fewer. Of what is no JSON it says nothing of use.
pub fn weight(json: &[u8]) -> usize {
    let rough = rough(json);
    if rough <= SMALL { rough } else { exact(json) }
}

/// In quick passes, as if strings held no punctuation.
#[allow(clippy::naive_bytecount)] // the compiler makes vector instructions of it
fn rough(json: &[u8]) -> usize {
    let count = |wanted: u8| json.iter().filter(|byte| **byte == wanted).count();
    json.len() + count(b',') * VALUE + count(b'{') * OBJECT + count(b'[') * LIST
}

fn exact(json: &[u8]) -> usize {
    let mut weight = json.len();
    let mut bytes = json.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        weight += match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
                0
            }
            b'{' if bytes.peek() != Some(&b'}') => OBJECT,
            b'[' if bytes.peek() != Some(&b']') => LIST,
            b',' => VALUE,
            _ => 0,
        };
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn punctuation_counts_outside_of_strings_only() {
        let text = json!({"a": [1, 2, {}], "b": "[{,\\\",{", "c": []}).to_string();
        assert_eq!(exact(text.as_bytes()), text.len() + OBJECT + LIST + 4 * VALUE);
        for broken in ["\"", "\"\\", "{", "", "{\"a"] {
            assert!(weight(broken.as_bytes()) >= broken.len(), "{broken}");
        }
    }

    #[test]
    fn what_is_small_on_the_page_and_large_in_memory_is_known() {
        let mebibyte = |unit: &str| format!("[{}0]", unit.repeat((1 << 20) / unit.len())).into_bytes();
        assert!(weight(&mebibyte("0,")) > 60 << 20);
        assert!(weight(&mebibyte(r#"{"":0},"#)) > 100 << 20);
        assert!(weight(&mebibyte("[0],")) > 60 << 20);
    }

    #[test]
    fn the_largest_pods_weigh_little() {
        // 1.5 MiB, all of it variables as short as they come in practice.
        let variable = json!({"name": "SETTING_0001", "value": "some value"});
        let count = (3 << 19) / (variable.to_string().len() + 1);
        let pod = json!({"spec": {"containers": [{"name": "main", "env": vec![variable; count]}]}}).to_string();
        assert!(weight(pod.as_bytes()) < 40 << 20, "{}", weight(pod.as_bytes()));
    }

    proptest::proptest! {
        #[test]
        fn the_quick_look_is_never_less(text in r#"[{}\[\],:"\\a0 ]{0,200}"#) {
            proptest::prop_assert!(exact(text.as_bytes()) <= rough(text.as_bytes()));
        }
    }
}
