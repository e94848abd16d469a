"""From dependencies to a plan: which units go.

In: dependencies, an amount or a budget, a criterion. Out: a :class:`~fxprune.planning.plan.Plan` of plain values.

Read ``planner.py`` first (amounts, the search within a budget), then ``names.py`` (what names mean), ``group_choice.py``
(which of crossing groups), ``ranking.py`` (in which order their units go), ``plan.py`` (the plan as made) and ``reach.py``
(what an amount does not reach).
Tests: ``tests/planning``.
"""
