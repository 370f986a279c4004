//! The closed lists of words that frames use: durabilities, outcomes, codes, types and fields.

/// An enum whose members are words on the wire.
macro_rules! words {
    ($(#[$doc:meta])* $visible:vis $name:ident { $($(#[$member_doc:meta])* $member:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        $visible enum $name {
            $($(#[$member_doc])* $member,)+
        }

        impl $name {
            /// Every member, in the order of the declaration.
            #[allow(dead_code, reason = "not every list is gone through")]
            $visible const ALL: &'static [$name] = &[$($name::$member,)+];

            /// The word on the wire.
            #[inline]
            $visible const fn as_str(self) -> &'static str {
                match self {
                    $($name::$member => $word,)+
                }
            }

            /// Reads a word; `None` if it is none of these.
            #[inline]
            $visible fn parse(word: impl AsRef<[u8]>) -> Option<$name> {
                match word.as_ref() {
                    $(word if word == $word.as_bytes() => Some($name::$member),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.as_str().fmt(out)
            }
        }
    };
}

words! {
    /// What has been done for a message when it is said to be accepted; the later, the stronger.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub Durability {
        /// Written to the live connection's queue of a text-protocol receiver. Nobody can ask for it.
        None = "none",
        /// In the receiver's mailbox, in memory.
        Memory = "memory",
        /// Message, its `seq` and its `id` are synced to disk.
        Disk = "disk",
        /// On a quorum of the cluster.
        Replicated = "replicated",
    }
}

words! {
    /// Why something was rejected.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub RejectCode {
        /// No device has this id.
        NoSuchDevice = "no_such_device",
        /// What the server may keep on disk is used up; the sender may try again later.
        StoreFull = "store_full",
        /// The receiver's mailbox is at its bound; the sender may try again later.
        MailboxFull = "mailbox_full",
        /// The sender's mailbox has no place left for the outcome that it asked for.
        OutcomesFull = "outcomes_full",
        /// The message is larger than the receiver's side takes.
        TooLarge = "too_large",
        /// The sender's token does not allow it.
        NotAllowed = "not_allowed",
        /// The sender spent its rate.
        RateLimited = "rate_limited",
        /// The same `id` stood for another receiver or body.
        IdReused = "id_reused",
        /// The receiver's side has no such durability, receipt or `ttl_ms`.
        DurabilityUnavailable = "durability_unavailable",
        /// The store is in trouble and the message's fate unknown: retry with the same id.
        StoreUnavailable = "store_unavailable",
        /// The frame could be read and makes no sense.
        BadRequest = "bad_request",
        /// What was to be cancelled has been pushed, or is gone.
        TooLate = "too_late",
    }
}

words! {
    /// How a message ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub Outcome {
        /// The receiver acked it.
        Delivered = "delivered",
        /// The receiver refused it.
        Refused = "refused",
        /// Its `ttl_ms` was over.
        Expired = "expired",
        /// The sender cancelled it.
        Cancelled = "cancelled",
        /// The receiver's device ended.
        Evicted = "evicted",
    }
}

words! {
    /// What was wrong with a frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub FrameErrorCode {
        /// It is no JSON object, has no type, or a field of it is wrong.
        BadFrame = "bad_frame",
        /// Its type is none that a client may send.
        UnknownType = "unknown_type",
    }
}

words! {
    /// What a client's frame is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) ClientKind {
        Send = "send",
        Ack = "ack",
        Refuse = "refuse",
        Cancel = "cancel",
        Ping = "ping",
        Hello = "hello",
        Devices = "devices",
        Watch = "watch",
        Unwatch = "unwatch",
        Refresh = "refresh",
    }
}

words! {
    /// What a server's frame is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) ServerKind {
        Message = "message",
        Accepted = "accepted",
        Rejected = "rejected",
        Outcome = "outcome",
        Cancelled = "cancelled",
        Presence = "presence",
        Pong = "pong",
        Welcome = "welcome",
        Devices = "devices",
        Watching = "watching",
        Refreshed = "refreshed",
        Expiring = "expiring",
        Bye = "bye",
        Error = "error",
    }
}

words! {
    /// The fields of frames, of either side; the usual ones first, since they are sought in order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) Field {
        Type = "type",
        Id = "id",
        To = "to",
        Body = "body",
        Seq = "seq",
        From = "from",
        SentAtMs = "sent_at_ms",
        Durability = "durability",
        Receipt = "receipt",
        TtlMs = "ttl_ms",
        Re = "re",
        Outcome = "outcome",
        AtMs = "at_ms",
        Reason = "reason",
        Token = "token",
        Mailbox = "mailbox",
        LastSeq = "last_seq",
        Devices = "devices",
        After = "after",
        Limit = "limit",
        Duplicate = "duplicate",
        Code = "code",
        Message = "message",
        RetryAfterMs = "retry_after_ms",
        MaybeSeen = "maybe_seen",
        Device = "device",
        Online = "online",
        SinceMs = "since_ms",
        Next = "next",
        Resumed = "resumed",
        Pending = "pending",
        PingEveryMs = "ping_every_ms",
        MaxMessageBytes = "max_message_bytes",
        Server = "server",
        ExpiresAtMs = "expires_at_ms",
        ReconnectInMs = "reconnect_in_ms",
        Ephemeral = "ephemeral",
    }
}
