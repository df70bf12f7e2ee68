use super::*;

fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap()
}

const DAY: i64 = 24;

fn stored(data: &CaData) -> CaData {
    let (read, complaints) = CaData::read(&data.write());
    assert_eq!(complaints, Vec::<String>::new());
    read
}

fn signing(data: &CaData) -> String {
    data.current.as_ref().unwrap().certificate.clone()
}

#[test]
fn a_ca_is_made_once() {
    let first = CaData::default().advance(|_| false, at(0)).unwrap();
    assert_eq!(first.bundle(), signing(&first));
    let data = first.write();
    let again = stored(&first).advance(|_| true, at(200 * DAY)).unwrap();
    assert_eq!(again.write(), data);
}

#[test]
fn a_new_ca_is_trusted_before_it_signs_and_the_old_one_until_it_ends() {
    let old = CaData::default().advance(|_| false, at(0)).unwrap();
    let old_certificate = signing(&old);

    let two = stored(&old).advance(|_| true, at(250 * DAY)).unwrap();
    let next = two.next.as_ref().unwrap().certificate.clone();
    assert_eq!(signing(&two), old_certificate);
    assert_eq!(two.bundle(), format!("{old_certificate}{next}"));
    assert!(two.state(true).unwrap().renewing);

    // Not in the configuration yet: nothing happens, however long it takes.
    let waiting = stored(&two).advance(|_| false, at(251 * DAY)).unwrap();
    assert_eq!(waiting.write(), two.write());
    // In the configuration, but only just.
    let waiting = stored(&two)
        .advance(|_| true, at(250 * DAY) + SignedDuration::from_secs(59))
        .unwrap();
    assert_eq!(waiting.write(), two.write());

    let switched = stored(&two)
        .advance(|one| one == next, at(250 * DAY) + SETTLING)
        .unwrap();
    assert_eq!(signing(&switched), next);
    assert_eq!(switched.bundle(), format!("{next}{old_certificate}"));
    assert!(!switched.write().contains_key(NEXT_CERTIFICATE_KEY));

    let alone = stored(&switched).advance(|_| true, at(366 * DAY)).unwrap();
    assert_eq!(alone.bundle(), next);
}

#[test]
fn a_clock_that_was_set_back_makes_a_next_ca_that_counts_now() {
    let future = CaData::default().advance(|_| false, at(1000 * DAY)).unwrap();
    let two = stored(&future).advance(|_| false, at(0)).unwrap();
    assert_eq!(two.next.as_ref().unwrap().made_at(), at(0));
    // The other one is of no use: there is nothing to wait for.
    let switched = stored(&two).advance(|_| true, at(0)).unwrap();
    assert!(!switched.current.as_ref().unwrap().validity.renewal_due(at(0)));
}

#[test]
fn an_expired_ca_gives_way_as_soon_as_the_next_one_is_trusted() {
    let old = CaData::default().advance(|_| false, at(0)).unwrap();
    let two = stored(&old).advance(|_| false, at(400 * DAY)).unwrap();
    assert_eq!(signing(&two), signing(&old));
    let switched = stored(&two).advance(|_| true, at(400 * DAY)).unwrap();
    assert_ne!(signing(&switched), signing(&old));
    assert_eq!(switched.bundle(), signing(&switched));
}

#[test]
fn a_spoilt_secret_starts_afresh_and_keeps_what_is_not_ours() {
    let good = CaData::default().advance(|_| false, at(0)).unwrap();
    let mut data = good.write();
    data.insert(PRIVATE_KEY_KEY.to_owned(), ByteString(b"x".to_vec()));
    data.insert("note".to_owned(), ByteString(b"mine".to_vec()));
    let (read, complaints) = CaData::read(&data);
    assert_eq!(complaints.len(), 1);
    let fresh = read.advance(|_| true, at(1)).unwrap();
    assert_ne!(signing(&fresh), signing(&good));
    assert_eq!(fresh.bundle(), signing(&fresh));
    assert!(merged(&data, fresh.write()).contains_key("note"));
}

#[test]
fn trusted_means_in_every_entry() {
    let ca = CaData::default().advance(|_| false, at(0)).unwrap();
    let configuration = |bundles: &[Option<&str>]| -> MutatingWebhookConfiguration {
        let entries: Vec<_> = bundles
            .iter()
            .map(|bundle| {
                let bundle = bundle.map(|text| ByteString(text.as_bytes().to_vec()));
                json!({"name": "a", "admissionReviewVersions": [], "sideEffects": "None", "clientConfig": {"caBundle": bundle}})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "c"}, "webhooks": entries})).unwrap()
    };
    let pem = ca.bundle();
    assert!(trusts(&configuration(&[Some(pem), Some(pem)]), pem));
    assert!(!trusts(&configuration(&[Some(pem), None]), pem));
    assert!(!trusts(&configuration(&[Some(pem), Some("")]), pem));
}
