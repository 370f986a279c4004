//! Refreshes the key set of a URL: at intervals, and when a client comes with a key that it
//! lacks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::KeyError;
use super::fetch::Fetcher;
use super::keys::Key;
use super::missing::Missing;
use super::{Keyring, public};
use crate::config::{Config, KeySet};

/// Interval between fetches; a key removed from the set is accepted for that much longer.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// Minimum time between two fetches, whatever keys clients come with; also the delay before a
/// failed one is repeated.
const GAP: Duration = Duration::from_secs(10);

/// The key set's URL, and when to fetch it.
#[derive(Debug)]
pub(super) struct Remote {
    fetcher: Fetcher,
    gap: Duration,
    missing: Mutex<Missing>,
}

/// Equal if the URL is the same.
impl PartialEq for Remote {
    fn eq(&self, other: &Remote) -> bool {
        self.fetcher.url() == other.fetcher.url()
    }
}

impl Remote {
    /// Returns `None` if the configuration names no URL.
    pub(super) fn of(config: &Config) -> Result<Option<Remote>, KeyError> {
        let Some(KeySet::Url(url)) = &config.auth_jwks else { return Ok(None) };
        let fetcher = Fetcher::new(url.clone())?;
        Ok(Some(Remote { fetcher, gap: GAP, missing: Mutex::default() }))
    }

    /// Returns true if a key of this name, which set number `set` lacks, may arrive with a later
    /// one.
    pub(super) fn may_bring(&self, kid: Option<&str>, set: u64) -> bool {
        self.lock_missing().may_come(kid, set)
    }

    fn lock_missing(&self) -> MutexGuard<'_, Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keyring {
    /// Fetches the key set of the URL at once and then whenever it is due, until `stop`
    /// completes; without a URL it waits for `stop` or for a URL. If a fetch fails, the previous
    /// keys stay.
    ///
    /// Run by one task, which the server waits for. Nothing is left running when it returns.
    pub async fn keep_fresh(&self, stop: impl Future<Output = ()>) {
        let refresh = async {
            loop {
                let remote = self.operator_keys().remote;
                let refresh = async {
                    match &remote {
                        Some(remote) => self.refresh_again_and_again(remote).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = refresh => {}
                    () = self.changed.notified() => {}
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = refresh => {}
        }
    }

    async fn refresh_again_and_again(&self, remote: &Remote) {
        loop {
            let pause = match self.refresh(remote).await {
                Ok(keys) => {
                    tracing::debug!(keys, "auth_jwks: key set fetched");
                    REFRESH
                }
                Err(problem) => {
                    tracing::warn!(%problem, "auth_jwks: refresh failed; keeping the previous keys");
                    remote.gap
                }
            };
            let wanted = async {
                tokio::time::sleep(remote.gap).await;
                self.wants_refresh.notified().await;
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wanted => {}
            }
        }
    }

    /// Fetches the set once and returns the number of keys.
    async fn refresh(&self, remote: &Remote) -> Result<usize, String> {
        remote.lock_missing().begin_fetch();
        let fetched = remote.fetcher.fetch().await.map_err(|error| error.to_string());
        let keys = fetched.and_then(|text| public::from_jwks(&text));
        let count = keys.map(|keys| self.take_set(keys));
        remote.lock_missing().end_fetch(self.operator_keys().set);
        count
    }

    fn take_set(&self, keys: Vec<Key>) -> usize {
        let mut operator = self.operator.write().unwrap_or_else(PoisonError::into_inner);
        operator.of_url = keys.into();
        operator.set += 1;
        operator.of_url.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use axum::Router;
    use axum::routing::get;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::super::TokenError;
    use super::super::tests::Issuer;
    use super::*;

    /// Maximum time for anything in a test; reaching it means a hang.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server with a key set, which records the time of each request.
    struct Host {
        text: Arc<Mutex<String>>,
        asked: mpsc::UnboundedReceiver<Instant>,
        keyring: Keyring,
        config: Config,
        _serving: JoinSet<()>,
    }

    impl Host {
        async fn new(keys: &[Value], gap: Duration) -> Host {
            let text = Arc::new(Mutex::new(set(keys)));
            let (ask, asked) = mpsc::unbounded_channel();
            let answer = Arc::clone(&text);
            let handler = async move || {
                ask.send(Instant::now()).unwrap();
                answer.lock().unwrap().clone()
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/jwks", listener.local_addr().unwrap()).parse().unwrap();
            let mut serving = JoinSet::new();
            let router = Router::new().route("/jwks", get(handler));
            serving.spawn(async { axum::serve(listener, router).await.unwrap() });
            let auth_jwks = Some(KeySet::Url(url));
            let config = Config { data_dir: None, auth_jwks, ..Config::default() };
            let mut keyring = Keyring::open(&config).unwrap();
            let operator = keyring.operator.get_mut().unwrap();
            Arc::get_mut(operator.remote.as_mut().unwrap()).unwrap().gap = gap;
            Host { text, asked, keyring, config, _serving: serving }
        }

        fn answer(&self, text: String) {
            *self.text.lock().unwrap() = text;
        }

        async fn refresh(&self) -> Result<usize, String> {
            self.keyring.refresh(&self.keyring.operator_keys().remote.unwrap()).await
        }
    }

    fn set(keys: &[Value]) -> String {
        json!({ "keys": keys }).to_string()
    }

    fn verify(keyring: &Keyring, issuer: &Issuer, kid: &str) -> Result<(), TokenError> {
        keyring.verify(&issuer.token(Some(kid), &json!({ "sub": "a" })), 0).map(drop)
    }

    #[tokio::test]
    async fn a_fetch_that_fails_leaves_the_old_set() {
        let (old, new) = (Issuer::p256(), Issuer::ed25519());
        let host = Host::new(&[old.jwk(Some("old"))], GAP).await;
        assert_eq!(verify(&host.keyring, &old, "old"), Err(TokenError::KeyAwaited));
        assert_eq!(host.refresh().await, Ok(1));
        for broken in ["", "<html>", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#] {
            host.answer(broken.to_owned());
            assert!(host.refresh().await.is_err(), "{broken}");
            assert_eq!(verify(&host.keyring, &old, "old"), Ok(()));
        }
        host.answer(set(&[new.jwk(Some("new"))]));
        assert_eq!(host.refresh().await, Ok(1));
        assert_eq!(verify(&host.keyring, &new, "new"), Ok(()));
        assert!(verify(&host.keyring, &old, "old").is_err());
    }

    #[tokio::test]
    async fn a_key_that_is_not_known_is_refused_only_by_a_set_that_is_fetched_after() {
        let (ours, other) = (Issuer::p256(), Issuer::ed25519());
        let host = Host::new(&[ours.jwk(Some("ours"))], GAP).await;
        let verify = |issuer, kid| verify(&host.keyring, issuer, kid);
        assert_eq!(host.refresh().await, Ok(1));
        // A key of this name is known, but the next set may have another under it.
        assert_eq!(verify(&other, "ours"), Err(TokenError::KeyAwaited));
        for _ in 0..2 {
            assert_eq!(verify(&other, "other"), Err(TokenError::KeyAwaited));
        }
        host.answer(String::new());
        assert!(host.refresh().await.is_err());
        assert_eq!(verify(&other, "other"), Err(TokenError::KeyAwaited));
        host.answer(set(&[ours.jwk(Some("ours"))]));
        assert_eq!(host.refresh().await, Ok(1));
        for _ in 0..2 {
            assert_eq!(verify(&other, "other"), Err(TokenError::UnknownKey));
            assert_eq!(verify(&other, "ours"), Err(TokenError::WrongAlgorithm));
        }
        assert_eq!(verify(&other, "another"), Err(TokenError::KeyAwaited));
        host.answer(set(&[ours.jwk(Some("ours")), other.jwk(Some("another"))]));
        assert_eq!(host.refresh().await, Ok(2));
        assert_eq!(verify(&other, "another"), Ok(()));
    }

    /// Tokens of a new key were once refused for good until the next refresh, five minutes later.
    #[tokio::test]
    async fn a_key_set_may_give_a_known_name_another_key() {
        let (old, new) = (Issuer::p256(), Issuer::p256());
        let host = Host::new(&[old.jwk(Some("k"))], GAP).await;
        assert_eq!(host.refresh().await, Ok(1));
        assert_eq!(verify(&host.keyring, &old, "k"), Ok(()));
        host.answer(set(&[new.jwk(Some("k"))]));
        assert_eq!(verify(&host.keyring, &new, "k"), Err(TokenError::KeyAwaited));
        assert_eq!(host.refresh().await, Ok(1));
        assert_eq!(verify(&host.keyring, &new, "k"), Ok(()));
    }

    #[tokio::test]
    async fn a_url_that_is_configured_since_is_fetched_and_the_old_set_is_gone() {
        let (old, new) = (Issuer::p256(), Issuer::p256());
        let mut first = Host::new(&[old.jwk(Some("old"))], GAP).await;
        let mut second = Host::new(&[new.jwk(Some("new"))], GAP).await;
        let (asked, then_asked) = (&mut first.asked, &mut second.asked);
        let keyring = &first.keyring;
        beside_keep_fresh(keyring, async {
            asked.recv().await.unwrap();
            keyring.reload(&second.config).unwrap();
            then_asked.recv().await.unwrap();
            while verify(keyring, &new, "new").is_err() {
                tokio::task::yield_now().await;
            }
            assert_eq!(verify(keyring, &old, "old"), Err(TokenError::KeyAwaited));
        })
        .await;
    }

    /// Runs `script` beside [`Keyring::keep_fresh`], which must return when the script does.
    async fn beside_keep_fresh(keyring: &Keyring, script: impl Future<Output = ()>) {
        tokio::time::timeout(PATIENCE, keyring.keep_fresh(script)).await.expect("it ends");
    }

    #[tokio::test]
    async fn an_unknown_key_makes_it_look_but_not_twice_within_the_gap() {
        let gap = Duration::from_millis(50);
        let (old, new) = (Issuer::p256(), Issuer::ed25519());
        let mut host = Host::new(&[old.jwk(Some("old"))], gap).await;
        let (text, asked, keyring) = (&host.text, &mut host.asked, &host.keyring);
        beside_keep_fresh(keyring, async {
            let first = asked.recv().await.unwrap();
            *text.lock().unwrap() = set(&[new.jwk(Some("new"))]);
            assert_eq!(verify(keyring, &new, "new"), Err(TokenError::KeyAwaited));
            let second = asked.recv().await.unwrap();
            assert!(second - first >= gap);
            while verify(keyring, &new, "new").is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn reload_makes_it_look() {
        let mut host = Host::new(&[Issuer::p256().jwk(None)], Duration::ZERO).await;
        let (asked, keyring) = (&mut host.asked, &host.keyring);
        beside_keep_fresh(keyring, async {
            asked.recv().await.unwrap();
            keyring.reload(&host.config).unwrap();
            asked.recv().await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn a_fetch_that_failed_is_tried_again_soon() {
        let mut host = Host::new(&[], Duration::ZERO).await;
        let (asked, keyring) = (&mut host.asked, &host.keyring);
        beside_keep_fresh(keyring, async {
            asked.recv().await.unwrap();
            asked.recv().await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn without_a_url_it_waits_for_its_end() {
        let keyring = Keyring::open(&Config { data_dir: None, ..Config::default() }).unwrap();
        beside_keep_fresh(&keyring, std::future::ready(())).await;
    }
}
