"""The instrument's wires, and a simulator of what is behind them. Imports nothing of ours.

===================  ===============================================================================================
PZT controller       gcs (text and values), transport (bytes), link (one request in flight), controller (its words),
                     survey, settling, moves, stage, pzt (opens one), drift
triggered motion     outputs (CTO), lines and flying (fly lines), steps (step and shoot), recording (and reconciling)
other instruments    trigger and boards (GPIO), adc and contact (the AFM's signal), focus, newport, xps, esp301
together             safety, rules and bounds (the interlock), guard, retraction, watch, guarded (opens all under it),
                     approach, hold, autofocus
simulator            the same instruments behind the same bytes
===================  ===============================================================================================
"""
