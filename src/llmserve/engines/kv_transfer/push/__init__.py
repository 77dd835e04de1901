"""Push: prefill writes each layer's KV into decode's blocks while it still computes.

Decode reserves first, prefill writes, decode trusts:

    decode                                   prefill
    Reserve (blocks, own side channel)  -->  keeps it with the transfer
    BeginPush is answered "valid"       <--  before its first write
                                   writes    of every layer that is computed and wanted
    EndPush is answered "valid"         <--  all is written and its lease still holds; carries the token
                                             that prefill drew, the lease is given back
    AskPush, about every second         -->  keeps transfer and lease alive, finds out when EndPush got lost

Prefill pins its finished blocks under a lease as it does for a pull. When not all could be written,
EndPush says why and carries the parameters of that lease, and decode pulls.

No write lands in blocks that have another owner. Decode gives reserved blocks back only when
1. prefill never got "valid" for BeginPush (and never will: the reservation is closed first); or
2. prefill has said that it has stopped and that each of its writes was confirmed by the far end; or
3. prefill is gone, or is on another host and does not answer, and the transports over which writes may
   still be under way were fenced: their memory is registered anew, which no earlier description
   reaches, and all peers connect again.
A reservation that is given up is first closed, then prefill is asked to stop (StopPush); it finishes
the write in hand, a few MiB, rather than to leave its end in doubt. docs/decisions/0009 says why.

`sender` and `transfer` act at prefill, and `progress` decides there; `receiver` and `receive` act at decode,
and `fence` decides there. The messages stand in `protocol`.
"""
