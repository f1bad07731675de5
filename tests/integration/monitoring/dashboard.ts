import type { Dashboard } from "./schema/package/dist/types/raw/dashboard/x/types.gen";
// JSON has the values of enumerations, and not their names
type Json<T> = T extends string ? (string extends T ? string : `${T}`)
  : T extends number | boolean | null | undefined ? T
  : T extends Array<infer One> ? Array<Json<One>>
  : T extends object ? { [Name in keyof T]: Json<T[Name]> } : T;
export const dashboard: Json<Dashboard> =
