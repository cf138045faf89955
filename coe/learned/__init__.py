"""Learned gates: when to answer and when to ask the next tier, trained on recorded outputs.

==============  ======================================================================================
`features`      what a gate may look at (numpy alone)
`gate_rule`     a trained gate as a deferral rule, ``rule: gate:FILE#DIGEST`` (numpy alone)
`stages`        training and evaluation arrays, trade-offs, gates to cascade (numpy alone)
`stopping`      the distribution of the stage that answers, and small networks (torch)
`gates`         IDK cascades: cost-aware and cost-oblivious neural gates (torch)
`policy`        stop policies, trained exactly or by REINFORCE (torch)
`methods`       all of these by one name (torch)
`joint`         classifiers and stop policy trained together (torch)
==============  ======================================================================================

Importing this package, and the modules marked numpy alone, needs no torch.
"""
